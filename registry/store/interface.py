"""Where bytes and documents lie. One small interface; `file_store` and `s3_store` implement it.

Blobs are content-addressed (`blobs/sha256/<digest>`), documents are small JSON objects under a key. All methods block,
may be called from many threads at once, and are atomic: a reader sees a blob or document whole or not at all. A method
that fails leaves nothing behind that a reader could see.
"""

import contextlib
import hashlib
import json
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

from kit.net.part_stream import Part

Document = dict[str, Any]
Bytes = bytes | memoryview


class StoreError(Exception):
    """The store cannot do what was asked; the message says why and what to do."""


class StoreFull(StoreError):
    """No room for what was to be written."""


class StoreDown(StoreError):
    """The store does not answer, or fails for a reason of its own that may pass."""


class DigestMismatch(StoreError):
    """The bytes given are not the bytes promised. Nothing was stored."""


class DocumentBroken(StoreError):
    """A document is there and cannot be read."""


class Upload(Protocol):
    """A blob on its way in, part by part, in order, by one thread. A context manager.

    What was left without `finish` or `drop`, by whatever way, is there for the next upload of the same digest.
    """

    part_size: int
    """The bytes of each part but the last."""
    done: int
    """The bytes that an earlier upload left, hashed: the first part to write begins there."""

    @property
    def path(self) -> Path | None:
        """The file that holds the parts written so far, where they can be read before all are there."""
        ...

    def write(self, part: Part) -> None:
        """Take the next part; it is released when it is kept. Raises StoreError, for an earlier part perhaps."""
        ...

    def check(self) -> None:
        """Prove that all has been written and is right. Raises DigestMismatch, and then nothing is left of it."""
        ...

    def finish(self) -> None:
        """Check, and make the blob appear. Raises DigestMismatch, and then nothing is left of it; StoreError."""
        ...

    def drop(self) -> None:
        """Forget what has arrived."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


@dataclass(frozen=True)
class Unfinished:
    """What lies in a store of an upload that was not finished."""

    digest: str
    size: int
    """The bytes that it holds and that need not come again; 0 where nothing can be gone on with."""
    age_s: float
    """Seconds since it was last written to."""
    upload_id: str = ""
    """What the store itself calls it, where one digest may have several."""


@dataclass(frozen=True)
class Blob:
    """A blob that is in a store."""

    digest: str
    size: int
    age_s: float
    """Seconds since it was put there."""


class Store(Protocol):
    """A place for blobs and documents."""

    @property
    def where(self) -> str:
        """The place in words for people, without credentials: `file:/data` or `s3://bucket at http://minio:9000`."""
        ...

    def check(self) -> None:
        """Prove that the store can be read. Raises StoreError within a few seconds when it cannot."""
        ...

    def free_bytes(self) -> int | None:
        """The room left, or None where nobody can tell."""
        ...

    def blob_size(self, digest: str) -> int | None:
        """The size of the blob with this sha256 (64 hex digits) in bytes, or None when it is not here."""
        ...

    def put_blob(self, digest: str, size: int, chunks: Iterable[Bytes]) -> None:
        """Take `size` bytes from `chunks`, in order, and keep them under their sha256, which must be `digest`.

        Memory is bounded whatever the size. A blob that is there already is not read again from `chunks`. An exception
        from `chunks` passes through. Raises DigestMismatch, StoreFull, StoreError.
        """
        ...

    def upload(self, digest: str, size: int, stop: threading.Event) -> Upload:
        """Begin or go on to put a blob of `size` bytes. At most one upload of a digest at a time.

        Where an earlier upload left bytes that must be read to be hashed, that happens here. Raises StoreError,
        Cancelled.
        """
        ...

    def drop_upload(self, digest: str) -> None:
        """Forget what an unfinished upload left; none is no error."""
        ...

    def unfinished(self) -> Iterator[Unfinished]:
        """What unfinished uploads left, those included that are under way now."""
        ...

    def drop_unfinished(self, unfinished: Unfinished) -> None:
        """Remove one of these; one that is gone is no error."""
        ...

    def read_blob(self, digest: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Yield the bytes from `start` up to `end` (exclusive; None: all). Raises StoreError when it is not here."""
        ...

    def delete_blob(self, digest: str) -> None:
        """Remove a blob; one that is not here is no error."""
        ...

    def blobs(self) -> Iterator[Blob]:
        """Yield all blobs."""
        ...

    def local_path(self, digest: str) -> Path | None:
        """The file that holds a blob, where it lies in a file of this machine."""
        ...

    def presign(self, digest: str, *, inside: bool) -> str | None:
        """A URL that gives the blob to whoever holds it, for a while; None where the store has no URLs.

        `inside`: for a client in the store's own network; otherwise the URL uses the public endpoint, if there is one.
        """
        ...

    def get_document(self, key: str) -> Document | None:
        """The document under `key`, or None. Raises DocumentBroken, StoreError."""
        ...

    def put_document(self, key: str, document: Document) -> None:
        """Write or replace the document under `key`; it is durable on return."""
        ...

    def create_document(self, key: str, document: Document) -> bool:
        """Write the document unless there is one under `key`; False then. Of several at once, one succeeds."""
        ...

    def delete_document(self, key: str) -> None:
        """Remove the document under `key`; none is no error."""
        ...

    def list_documents(self, prefix: str) -> list[str]:
        """The keys of all documents below `prefix` (which ends in '/'), sorted."""
        ...

    def exclusive(self) -> contextlib.AbstractContextManager[None]:
        """Hold the store's one lock: what publishes and what deletes never run at once. Held for moments only."""
        ...

    def close(self) -> None:
        """Let go of connections."""
        ...


def blob_key(digest: str) -> str:
    """The key of a blob below the store's root."""
    return f"blobs/sha256/{digest}"


def upload_key(digest: str) -> str:
    """The key of what is kept of an unfinished upload of a blob in parts."""
    return f"uploads/{digest}.json"


def read_digest(store: Store, digest: str, on_bytes: Callable[[int], None]) -> str:
    """The sha256 of what lies under `digest` now. `on_bytes` is told of every chunk, and may raise to end it.

    Raises StoreError when the store cannot be read: that is no damage.
    """
    hasher = hashlib.sha256()
    for chunk in store.read_blob(digest):
        hasher.update(chunk)
        on_bytes(len(chunk))
    return hasher.hexdigest()


def mismatch(digest: str, size: int, got_digest: str, got_size: int) -> str:
    """What is wrong with bytes that are not the blob promised."""
    if got_size != size:
        return f"expected {size} bytes, got {'more' if got_size > size else got_size}"
    return f"expected sha256 {digest}, got {got_digest}"


def parse_document(store: Store, key: str, data: bytes) -> Document:
    """The document that `data` is. Raises DocumentBroken, which names the place."""
    try:
        document = json.loads(data)
    except ValueError as error:
        raise DocumentBroken(f"{key} in {store.where} is no JSON ({error}). Restore it, or remove it.") from error
    if not isinstance(document, dict):
        raise DocumentBroken(f"{key} in {store.where} is no JSON object. Restore it, or remove it.")
    return document
