"""The local cache of model files: a folder per commit that appears when it is complete, and what was verified.

<cache>/<org--name>/<commit>/          the files, exactly as in the repository
<cache>/<org--name>/<commit>.json      size, time and digest of each file when it was last verified
<cache>/<org--name>/<commit>.part/     a fetch under way (its record beside it)
<cache>/<org--name>/refs.json          which commit a revision was last
<cache>/<org--name>/lock               held by the process that fetches
"""

import contextlib
import fcntl
import json
import os
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from kit.config.hub_names import repo_folder
from kit.model_files.registry_source import CHUNK, Listing, RemoteFile
from kit.net.retry import check_stop

LOCK_POLL_S = 0.2


@dataclass(frozen=True)
class Verified:
    """What a file looked like when its digest was last found right: while size and time stay, so does the content."""

    size: int
    mtime_ns: int
    digest: str


class VerifiedFolder:
    """A folder of files and the record of what was verified in it. Not for several threads at once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.record = folder.with_name(folder.name + ".json")
        self._verified = _read_record(self.record)

    def has(self, file: RemoteFile, stop: threading.Event) -> bool:
        """Whether `file` is here and right. Reads it only when it is not the file that was verified last."""
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
        if not file.is_proved_by(hasher):
            return False
        self.remember(file)
        return True

    def remember(self, file: RemoteFile) -> None:
        """Note that `file` was just verified."""
        found = (self.folder / file.path).stat()
        self._verified[file.path] = Verified(found.st_size, found.st_mtime_ns, file.digest)
        document = {path: vars(verified) for path, verified in self._verified.items()}
        write_json(self.record, document)

    def recorded(self) -> list[RemoteFile]:
        """The files that the record knows."""
        return [RemoteFile(path, verified.size, verified.digest) for path, verified in self._verified.items()]

    def forget(self) -> None:
        """Remove the record."""
        self.record.unlink(missing_ok=True)
        self._verified = {}


class ModelCache:
    """The cache of one repository."""

    def __init__(self, cache: Path, repo: str) -> None:
        """Make the folder if need be. Raises OSError."""
        self._home = cache.expanduser().absolute() / repo_folder(repo)
        self._home.mkdir(parents=True, exist_ok=True)

    @property
    def home(self) -> Path:
        """The folder of this repository."""
        return self._home

    def complete(self, listing: Listing, stop: threading.Event) -> Path | None:
        """The folder of this commit if every file of `listing` is in it and right, else None."""
        final = self._final(listing.commit)
        if not final.is_dir():
            return None
        verified = VerifiedFolder(final)
        return final if all(verified.has(file, stop) for file in listing.files) else None

    def last_complete(self, revision: str, stop: threading.Event) -> Path | None:
        """The folder that `revision` was when it was last fetched, if all of it is still there and right."""
        commit = _read_json(self._home / "refs.json").get(revision)
        final = self._final(str(commit))
        if commit is None or not final.is_dir():
            return None
        verified = VerifiedFolder(final)
        files = verified.recorded()
        return final if files and all(verified.has(file, stop) for file in files) else None

    def note_revision(self, revision: str, commit: str) -> None:
        """Remember what `revision` is, for a start without the registry."""
        refs = _read_json(self._home / "refs.json")
        if refs.get(revision) != commit:
            write_json(self._home / "refs.json", refs | {revision: commit})

    def part(self, listing: Listing) -> VerifiedFolder:
        """The folder in which this commit is being put together."""
        folder = self._home / f"{listing.commit}.part"
        folder.mkdir(exist_ok=True)
        return VerifiedFolder(folder)

    def publish(self, listing: Listing, part: VerifiedFolder) -> Path:
        """Give the complete `part` its final name, or move what was missing into the folder that has it."""
        final = self._final(listing.commit)
        if final.is_dir():
            verified = VerifiedFolder(final)
            for file in listing.files:
                if (part.folder / file.path).is_file():
                    (final / file.path).parent.mkdir(parents=True, exist_ok=True)
                    (part.folder / file.path).replace(final / file.path)
                    verified.remember(file)
            _remove_tree(part.folder)
        else:
            _fsync_tree(part.folder)
            part.folder.rename(final)
            if part.record.exists():
                part.record.replace(final.with_name(final.name + ".json"))
        part.forget()
        _fsync(self._home)
        return final

    @contextlib.contextmanager
    def locked(self, waiting: Callable[[], None], stop: threading.Event) -> Iterator[None]:
        """Hold this repository's lock, across processes. Calls `waiting` while another holds it.

        The system lets go of the lock when its holder dies, however it dies.
        """
        with (self._home / "lock").open("w") as file:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    waiting()
                    stop.wait(LOCK_POLL_S)
                    check_stop(stop)
            yield

    def _final(self, commit: str) -> Path:
        return self._home / commit


def write_json(path: Path, document: Mapping[str, object]) -> None:
    """Replace the file at `path` whole."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        temporary.write_text(json.dumps(dict(document)), encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _read_json(path: Path) -> dict[str, object]:
    """The object in the file at `path`; empty when there is none, or a damaged one: it is only a memory."""
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


def _remove_tree(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    folder.rmdir()


def _fsync_tree(folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        if path.is_dir():
            _fsync(path)


def _fsync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
