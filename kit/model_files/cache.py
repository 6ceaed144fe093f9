"""The local cache of model files: one folder per commit, published when complete, with a record of verified files.

<cache>/<org--name>/<commit>/          the files, exactly as in the repository
<cache>/<org--name>/<commit>.json      size, time and digest of each file when it was last verified
<cache>/<org--name>/<commit>.part/     a fetch in progress (with its own record beside it)
<cache>/<org--name>/refs.json          the last known commit of each revision
<cache>/<org--name>/lock               held by the process that fetches
"""

import contextlib
import fcntl
import json
import secrets
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from kit.config.hub_names import repo_folder
from kit.hub.listing import Listing, RemoteFile
from kit.net.part_stream import fsync_folder
from kit.net.retry import check_stop

CHUNK = 1 << 20
LOCK_POLL_S = 0.2


@dataclass(frozen=True)
class Verified:
    """A file's state when its digest was last verified. The content counts as unchanged while size and time are."""

    size: int
    mtime_ns: int
    digest: str


class VerifiedFolder:
    """A folder of files with a record of the verified ones. Not thread-safe."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.record = folder.with_name(folder.name + ".json")
        self._verified = _read_record(self.record)

    def has(self, file: RemoteFile, stop: threading.Event) -> bool:
        """Return whether `file` is here and intact. Reads it only if it changed since it was verified."""
        try:
            found = (self.folder / file.path).stat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        if found.st_size != file.size:
            return False
        if self._verified.get(file.path) == Verified(found.st_size, found.st_mtime_ns, file.digest):
            return True
        hasher = file.hasher()
        with (self.folder / file.path).open("rb", buffering=0) as stream:
            while chunk := stream.read(CHUNK):
                check_stop(stop)
                hasher.update(chunk)
        if not file.matches(hasher):
            return False
        self.remember(file)
        return True

    def remember(self, file: RemoteFile) -> None:
        """Record that `file` was just verified."""
        found = (self.folder / file.path).stat()
        self._verified[file.path] = Verified(found.st_size, found.st_mtime_ns, file.digest)
        _write_json(self.record, {path: vars(verified) for path, verified in self._verified.items()})

    def is_intact(self, stop: threading.Event) -> bool:
        """Return whether all recorded files are here and intact, and there is a record."""
        files = [RemoteFile.with_digest(path, known.size, known.digest) for path, known in self._verified.items()]
        return bool(files) and all(self.has(file, stop) for file in files)

    def forget(self) -> None:
        """Remove the record."""
        self.record.unlink(missing_ok=True)
        self._verified = {}


class ModelCache:
    """The cache of one repository."""

    def __init__(self, cache: Path, repo: str) -> None:
        """Create the folder if needed. Raises OSError."""
        self.home = cache.expanduser().absolute() / repo_folder(repo)
        self.home.mkdir(parents=True, exist_ok=True)
        self._refs = self.home / "refs.json"

    def complete(self, listing: Listing, stop: threading.Event) -> Path | None:
        """Return the folder of this commit if every file of `listing` is in it and intact, else None."""
        final = self.home / listing.commit
        if not final.is_dir():
            return None
        verified = VerifiedFolder(final)
        return final if all(verified.has(file, stop) for file in listing.files) else None

    def last_complete(self, revision: str, stop: threading.Event) -> Path | None:
        """Return the folder of the last known commit of `revision` if it is still intact, else None."""
        commit = _read_json(self._refs).get(revision)
        final = self.home / str(commit)
        return final if commit is not None and VerifiedFolder(final).is_intact(stop) else None

    def record_revision(self, revision: str, commit: str) -> None:
        """Record the commit of `revision`, for a start without the registry."""
        refs = _read_json(self._refs)
        if refs.get(revision) != commit:
            _write_json(self._refs, refs | {revision: commit})

    def part(self, listing: Listing) -> VerifiedFolder:
        """Return the folder in which this commit is assembled."""
        folder = self.home / f"{listing.commit}.part"
        folder.mkdir(exist_ok=True)
        return VerifiedFolder(folder)

    def publish(self, listing: Listing, part: VerifiedFolder) -> Path:
        """Rename the complete `part` to its final name, or move its files into an existing final folder."""
        final = self.home / listing.commit
        if final.is_dir():
            verified = VerifiedFolder(final)
            for file in listing.files:
                if (part.folder / file.path).is_file():
                    (final / file.path).parent.mkdir(parents=True, exist_ok=True)
                    (part.folder / file.path).replace(final / file.path)
                    verified.remember(file)
            shutil.rmtree(part.folder)
        else:
            for path in (part.folder, *part.folder.rglob("*")):
                if path.is_dir():
                    fsync_folder(path)
            part.folder.rename(final)
            if part.record.exists():
                part.record.replace(final.with_name(final.name + ".json"))
        part.forget()
        fsync_folder(self.home)
        return final

    @contextlib.contextmanager
    def locked(self, waiting: Callable[[], None], stop: threading.Event) -> Iterator[None]:
        """Hold this repository's lock, across processes. Calls `waiting` while another process holds it.

        The system releases the lock when its holder ends, even by SIGKILL.
        """
        with (self.home / "lock").open("w") as file:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    waiting()
                    stop.wait(LOCK_POLL_S)
                    check_stop(stop)
            yield


def _write_json(path: Path, document: Mapping[str, object]) -> None:
    """Replace the file at `path` atomically."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        temporary.write_text(json.dumps(dict(document)), encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _read_json(path: Path) -> dict[str, object]:
    """Return the object in the file at `path`, empty if it is missing or damaged: losing it only costs time."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


def _read_record(path: Path) -> dict[str, Verified]:
    try:
        return {str(key): Verified(**value) for key, value in _read_json(path).items()}  # type: ignore[arg-type]  # checked by the except
    except TypeError:
        return {}
