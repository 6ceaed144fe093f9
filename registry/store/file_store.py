"""A store in a local folder, with the same layout as the bucket.

Files are written under a temporary name, fsynced and renamed, and their folder is fsynced: a power cut leaves complete
files or none, and loses nothing that was reported as stored.
"""

import contextlib
import errno
import fcntl
import json
import os
import secrets
import shutil
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from kit.net.part_stream import fsync_folder, write_all
from registry.store.file_upload import FileUpload
from registry.store.interface import (
    Blob,
    Bytes,
    Document,
    StoreError,
    StoreFull,
    Unfinished,
    blob_key,
    parse_document,
    verified,
)

CHUNK = 1 << 20
ABANDONED_S = 3600.0
_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class FileStore:
    """See `registry.store.interface.Store`. Several processes may share a folder."""

    def __init__(self, root: Path) -> None:
        """Create the folder if it is missing. Raises StoreError if it cannot be used."""
        self._root = root.expanduser().absolute()
        self.where = f"file:{self._root}"
        self._incoming = self._root / "incoming"
        self._uploads = self._root / "uploads"
        self._lock = threading.Lock()
        with self._failures("create"):
            for folder in (self._incoming, self._root / "blobs" / "sha256"):
                folder.mkdir(parents=True, exist_ok=True)
            self._delete_abandoned()

    def check(self) -> None:
        """List the folder."""
        with self._failures("read"), os.scandir(self._root) as entries:
            next(entries, None)

    def free_bytes(self) -> int | None:
        """The free space on the folder's disk for this user."""
        with self._failures("read"):
            return shutil.disk_usage(self._root).free

    def blob_size(self, digest: str) -> int | None:
        """The blob's size, or None."""
        with self._failures("read"), contextlib.suppress(FileNotFoundError):
            return self._blob(digest).stat().st_size
        return None

    def put_blob(self, digest: str, size: int, chunks: Iterable[Bytes]) -> None:
        """Write to `incoming/`, hashing on the way, and rename if the digest matches."""
        if self.blob_size(digest) == size:
            return
        temporary = self._incoming / f"{digest}.{secrets.token_hex(4)}"
        try:
            with self._failures("write to"):
                file = temporary.open("xb", buffering=0)
            with file:
                for chunk in verified(chunks, digest, size):
                    with self._failures("write to"):
                        write_all(file.fileno(), chunk)
                with self._failures("write to"):
                    os.fchmod(file.fileno(), 0o444)
                    os.fsync(file.fileno())
                    self._publish(temporary, self._blob(digest))
        finally:
            temporary.unlink(missing_ok=True)

    def upload(self, digest: str, size: int, stop: threading.Event) -> FileUpload:
        """Append to `uploads/<digest>.part`, after hashing its content."""
        return FileUpload(
            self._partial(digest), self._blob(digest), digest, size,
            publish=self._publish, failures=self._failures, stop=stop,
        )  # fmt: skip

    def drop_upload(self, digest: str) -> None:
        """Remove the upload's file."""
        with self._failures("write to"):
            self._partial(digest).unlink(missing_ok=True)

    def unfinished(self) -> Iterator[Unfinished]:
        """Yield the files in `uploads/`."""
        with self._failures("read"):
            for path in sorted(self._uploads.glob("*.part")):
                with contextlib.suppress(FileNotFoundError):
                    found = path.stat()
                    yield Unfinished(path.stem, found.st_size, max(time.time() - found.st_mtime, 0.0))

    def drop_unfinished(self, unfinished: Unfinished) -> None:
        """Remove the upload's file."""
        self.drop_upload(unfinished.digest)

    def read_blob(self, digest: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Yield chunks of at most 1 MiB."""
        with self._failures("read"), self._blob(digest).open("rb", buffering=0) as file:
            file.seek(start)
            left = (sys.maxsize if end is None else end) - start
            while left > 0 and (chunk := file.read(min(CHUNK, left))):
                left -= len(chunk)
                yield chunk

    def delete_blob(self, digest: str) -> None:
        """Unlink the blob; open readers can still read it to its end."""
        with self._failures("write to"):
            self._blob(digest).unlink(missing_ok=True)

    def blobs(self) -> Iterator[Blob]:
        """Yield the files in `blobs/sha256`."""
        with self._failures("read"), os.scandir(self._root / "blobs" / "sha256") as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):  # deleted since it was listed
                    found = entry.stat()
                    yield Blob(entry.name, found.st_size, max(time.time() - found.st_mtime, 0.0))

    def local_path(self, digest: str) -> Path | None:
        """The blob's file."""
        return self._blob(digest)

    def presign(self, digest: str, *, inside: bool) -> str | None:
        """None: a folder has no URLs."""
        return None

    def get_document(self, key: str) -> Document | None:
        """Read the document's file."""
        with self._failures("read"), contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return parse_document(self, key, (self._root / key).read_bytes())
        return None

    def put_document(self, key: str, document: Document) -> None:
        """Replace the document's file."""
        temporary = self._incoming / f"document.{secrets.token_hex(8)}"
        try:
            with self._failures("write to"):
                with temporary.open("xb", buffering=0) as file:
                    write_all(file.fileno(), json.dumps(document, ensure_ascii=False, indent=1).encode())
                    os.fsync(file.fileno())
                self._publish(temporary, self._root / key)
        finally:
            temporary.unlink(missing_ok=True)

    def create_document(self, key: str, document: Document) -> bool:
        """Write it while holding the lock that all processes share."""
        with self.exclusive():
            if self.get_document(key) is not None:
                return False
            self.put_document(key, document)
        return True

    def delete_document(self, key: str) -> None:
        """Unlink the document and the folders that become empty."""
        path = self._root / key
        with self._failures("write to"):
            path.unlink(missing_ok=True)
            for folder in path.parents:
                if folder.parent in (self._root, folder):
                    return
                try:
                    folder.rmdir()
                except OSError:
                    return  # not empty, or already gone

    def list_documents(self, prefix: str) -> list[str]:
        """The files below the folder `prefix`."""
        with self._failures("read"):
            return sorted(
                str(path.relative_to(self._root)) for path in (self._root / prefix).rglob("*") if path.is_file()
            )

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Lock out other threads, then other processes (`registry import`)."""
        with self._lock:
            with self._failures("lock"):
                file = (self._root / "lock").open("w")
            with file:
                fcntl.flock(file, fcntl.LOCK_EX)
                yield

    def close(self) -> None:
        """Do nothing: no file is kept open."""

    def _delete_abandoned(self) -> None:
        """Delete files that a killed process left incomplete: those not written to for ABANDONED_S."""
        for path in self._incoming.iterdir():
            with contextlib.suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > ABANDONED_S:
                    path.unlink()

    def _blob(self, digest: str) -> Path:
        return self._root / blob_key(digest)

    def _partial(self, digest: str) -> Path:
        return self._uploads / f"{digest}.part"

    def _publish(self, temporary: Path, final: Path) -> None:
        while True:
            final.parent.mkdir(parents=True, exist_ok=True)
            try:
                temporary.replace(final)
                break
            except FileNotFoundError:
                if not temporary.exists():
                    raise
                # The empty folder was removed between mkdir and rename.
        for folder in (final.parent, *final.parent.parents):
            fsync_folder(folder)
            if folder == self._root:
                break

    @contextlib.contextmanager
    def _failures(self, verb: str) -> Iterator[None]:
        """Convert OSError to StoreError."""
        try:
            yield
        except OSError as error:
            if error.errno in _NO_SPACE:
                raise StoreFull(
                    f"The disk of {self.where} is full ({error.strerror}). "
                    "Free some space, delete a model, or set STORE to another location."
                ) from error
            raise StoreError(f"Cannot {verb} {self.where}: {error.strerror or error} ({error.filename}).") from error
