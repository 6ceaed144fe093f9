"""The interface of the object stores `file_store` and `s3_store`: content-addressed blobs, JSON documents, uploads.

A blob's key is `blobs/sha256/<digest>`. All methods block, are thread-safe and atomic: a reader sees a complete blob or
document, or none. A method that fails leaves nothing visible behind.
"""

import contextlib
import hashlib
import json
import threading
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from kit.net.part_stream import Part

Document = dict[str, Any]
Bytes = bytes | memoryview


class StoreError(Exception):
    """The store failed; the message says why and what to do."""


class StoreFull(StoreError):
    """No space left on the disk or within the quota."""


class StoreDown(StoreError):
    """The store is unreachable or fails temporarily; a retry may succeed."""


class DigestMismatch(StoreError):
    """The content does not match its digest or size. Nothing was stored."""


class DocumentBroken(StoreError):
    """A document exists and cannot be parsed."""


class Upload(contextlib.AbstractContextManager["Upload"]):
    """A resumable upload of one blob, written in order by one thread. A context manager.

    Without `finish` or `drop`, the parts written so far stay for the next upload of the same digest.
    """

    part_size: int
    """The bytes of each part but the last."""
    done: int
    """The bytes left by an earlier upload: the offset of the first part to write."""

    def __init__(self, digest: str, size: int) -> None:
        self._digest, self._size = digest, size
        self._position = 0
        self._hasher: hashlib._Hash | None = hashlib.sha256()
        """None if earlier parts cannot be read back yet; `_read_digest` is overridden then."""

    def write(self, part: Part) -> None:
        """Hash and store the next part, and release it when it is stored.

        Raises StoreError, also for the failure of an earlier part that is sent in the background.
        """
        try:
            end = part.start + len(part.view)
            if part.start != self._position or (len(part.view) != self.part_size and end != self._size):
                raise ValueError(f"{len(part.view)} bytes at {part.start} are not the next part")
            if self._hasher is not None:
                self._hasher.update(part.view)
            self._write(part)
            self._position = end
        except BaseException:
            part.release()
            raise

    def finish(self) -> None:
        """Verify the digest and make the blob visible.

        Raises DigestMismatch after dropping the upload; StoreError, Cancelled.
        """
        try:
            check_size(self._size, self._position)
            check_digest(self._digest, self._read_digest())
        except DigestMismatch:
            self.drop()
            raise
        self._publish()

    def _read_digest(self) -> str:
        assert self._hasher is not None, "overridden where content is not hashed on the way"
        return self._hasher.hexdigest()

    @abstractmethod
    def _write(self, part: Part) -> None:
        """Store the part, now or in the background, and release it then."""

    @abstractmethod
    def _publish(self) -> None:
        """Make the verified blob visible."""

    @abstractmethod
    def drop(self) -> None:
        """Remove everything that was uploaded."""


@dataclass(frozen=True)
class Unfinished:
    """An unfinished upload in a store."""

    digest: str
    size: int
    """The bytes that need not be fetched again; 0 if the upload cannot be resumed."""
    age_s: float
    """Seconds since the last write."""
    upload_id: str = ""
    """The store's own id, where one digest may have several uploads."""


@dataclass(frozen=True)
class Blob:
    """A blob in a store."""

    digest: str
    size: int
    age_s: float
    """Seconds since it was stored."""


class Store(Protocol):
    """A store of blobs and documents."""

    where: str
    """The location for messages, without credentials: `file:/data` or `s3://bucket at http://minio:9000`."""

    def check(self) -> None:
        """Check that the store is readable. Raises StoreError within a few seconds if it is not."""

    def free_bytes(self) -> int | None:
        """The free space, or None if it is unknown."""

    def blob_size(self, digest: str) -> int | None:
        """The size in bytes of the blob with this sha256 (64 hex digits), or None if it is missing or not verified."""

    def put_blob(self, digest: str, size: int, chunks: Iterable[Bytes]) -> None:
        """Store `size` bytes from `chunks`, in order, under their sha256 `digest`, in bounded memory.

        Does not read `chunks` if the blob exists. An exception from `chunks` is passed on. Raises DigestMismatch,
        StoreFull, StoreError.
        """

    def upload(self, digest: str, size: int, stop: threading.Event) -> Upload:
        """Start or resume the upload of a blob of `size` bytes; only one per digest at a time.

        Stored bytes are read back where they must be hashed again. Raises StoreError, Cancelled.
        """

    def drop_upload(self, digest: str) -> None:
        """Remove the unfinished upload of a blob, if there is one."""

    def unfinished(self) -> Iterator[Unfinished]:
        """Yield the unfinished uploads, including those in progress."""

    def drop_unfinished(self, unfinished: Unfinished) -> None:
        """Remove one of these, if it still exists."""

    def read_blob(self, digest: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Yield the bytes from `start` to `end` (exclusive; None: all). Raises StoreError if the blob is missing."""

    def delete_blob(self, digest: str) -> None:
        """Delete a blob, if it exists."""

    def blobs(self) -> Iterator[Blob]:
        """Yield all blobs."""

    def local_path(self, digest: str) -> Path | None:
        """The path of the blob's file, or None if the store has no local files."""

    def presign(self, digest: str, *, inside: bool) -> str | None:
        """A presigned URL of the blob, or None if the store has no URLs.

        `inside`: for a client in the store's own network; otherwise the URL uses the public endpoint, if there is one.
        """

    def get_document(self, key: str) -> Document | None:
        """The document under `key`, or None. Raises DocumentBroken, StoreError."""

    def put_document(self, key: str, document: Document) -> None:
        """Write or replace the document under `key`; it is durable on return."""

    def create_document(self, key: str, document: Document) -> bool:
        """Write the document unless `key` exists; return whether it was written. Only one concurrent call succeeds."""

    def delete_document(self, key: str) -> None:
        """Delete the document under `key`, if it exists."""

    def list_documents(self, prefix: str) -> list[str]:
        """The keys of all documents below `prefix` (which ends in '/'), sorted."""

    def exclusive(self) -> contextlib.AbstractContextManager[None]:
        """Hold the store's lock, so that publication and deletion never overlap. Held only briefly."""

    def close(self) -> None:
        """Close connections."""


def blob_key(digest: str) -> str:
    """The key of a blob below the store's root."""
    return f"blobs/sha256/{digest}"


def upload_key(digest: str) -> str:
    """The key of the state of an unfinished multipart upload."""
    return f"uploads/{digest}.json"


def read_digest(store: Store, digest: str, on_bytes: Callable[[int], None]) -> str:
    """Read the blob and return the sha256 of its content. `on_bytes` gets each chunk's length and may raise to cancel.

    Raises StoreError if the store is not readable.
    """
    hasher = hashlib.sha256()
    for chunk in store.read_blob(digest):
        hasher.update(chunk)
        on_bytes(len(chunk))
    return hasher.hexdigest()


def verified(chunks: Iterable[Bytes], digest: str, size: int) -> Iterator[Bytes]:
    """Yield `chunks`. Raises DigestMismatch after the last one if they do not have the size and the digest."""
    hasher, done = hashlib.sha256(), 0
    for chunk in chunks:
        done += len(chunk)
        if done > size:
            break
        hasher.update(chunk)
        yield chunk
    check_size(size, done)
    check_digest(digest, hasher.hexdigest())


def check_size(expected: int, size: int) -> None:
    """Raise DigestMismatch if the sizes differ."""
    if size != expected:
        raise DigestMismatch(f"expected {expected} bytes, got {'more' if size > expected else size}")


def check_digest(expected: str, digest: str) -> None:
    """Raise DigestMismatch if the digests differ."""
    if digest != expected:
        raise DigestMismatch(f"expected sha256 {expected}, got {digest}")


def parse_document(store: Store, key: str, data: bytes) -> Document:
    """Parse a document. Raises DocumentBroken, which names the store and the key."""
    try:
        document = json.loads(data)
    except ValueError as error:
        raise DocumentBroken(f"{key} in {store.where} is not JSON ({error}). Restore or delete it.") from error
    if not isinstance(document, dict):
        raise DocumentBroken(f"{key} in {store.where} is not a JSON object. Restore or delete it.")
    return document
