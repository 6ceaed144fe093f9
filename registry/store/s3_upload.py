"""One blob on its way into a bucket, in the parts of a multipart upload, several of them at once.

The object appears only when the upload is completed, which happens only when the digest is right. Beside it lies
`uploads/<digest>.json`: how many parts, counted from the first, have arrived, and the state of the sha256 after them.
A process that is killed at any instant leaves no more to be fetched again than the parts that were in memory. A part
that arrives late, sent by a process that has died since, changes nothing: completion names every part by its ETag.
"""

import contextlib
import datetime
import io
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import structlog
from botocore.exceptions import ClientError
from pydantic import BaseModel, Field, ValidationError

from kit.net.part_stream import Part
from registry.store.interface import (
    DigestMismatch,
    Document,
    DocumentBroken,
    StoreError,
    Unfinished,
    blob_key,
    mismatch,
    upload_key,
)
from registry.store.part_size import part_size
from registry.store.resumable_sha256 import ResumableSha256, can_be_resumed

log = structlog.get_logger(__name__)


class Bucket(Protocol):
    """What an upload needs of the store around it."""

    client: Any
    bucket: str
    senders: ThreadPoolExecutor

    def failures(self) -> contextlib.AbstractContextManager[None]:
        """Turns the client's errors into ours."""
        ...

    def get_document(self, key: str) -> Document | None:
        """See `Store`."""
        ...

    def put_document(self, key: str, document: Document) -> None:
        """See `Store`."""
        ...

    def delete_document(self, key: str) -> None:
        """See `Store`."""
        ...


class UploadState(BaseModel):
    """What `uploads/<digest>.json` holds."""

    upload_id: str
    size: int
    part_size: int
    parts: int = Field(default=0, ge=0, description="how many have arrived, without a gap")
    sha256: str | None = Field(default=None, description="the state of the hash after them; None after none")


class S3Upload:
    """See `registry.store.interface.Upload`. `kept` False leaves nothing for another process to go on with."""

    def __init__(self, bucket: Bucket, digest: str, size: int, *, kept: bool) -> None:
        self._bucket = bucket
        self._digest = digest
        self._size = size
        self._kept = kept and can_be_resumed()
        self._lock = threading.Lock()
        self._sending: list[tuple[Future[None], Part]] = []
        # Parts that have arrived before one with a lower number: their memory is held, so they count as in flight.
        self._early: dict[int, tuple[Part, str | None]] = {}
        self._etags: dict[int, str] = {}
        self._noting = False
        self._over = False
        document = self._find() if self._kept else None
        self._state = document or self._begin()
        self.part_size = self._state.part_size
        self._arrived = self._state.parts
        self.done = self._taken = min(self._state.parts * self.part_size, size)
        self._next = self._state.parts + 1
        self._hasher = ResumableSha256(self._state.sha256, self.done)

    @property
    def path(self) -> Path | None:
        """A bucket shows no upload before it is complete."""
        return None

    def write(self, part: Part) -> None:
        """Hash the part and send it in the background. Raises what sending an earlier one raised."""
        try:
            self._raise_failure()
            if part.start != self._taken or (
                len(part.view) != self.part_size and self._taken + len(part.view) != self._size
            ):
                raise ValueError(f"{len(part.view)} bytes at {part.start} are not the next part")
            self._hasher.update(part.view)
            self._taken += len(part.view)
            number, self._next = self._next, self._next + 1
            future = self._bucket.senders.submit(self._send, number, part, self._hasher.state)
            self._sending.append((future, part))
        except BaseException:
            part.release()
            raise

    def check(self) -> None:
        """Compare the digest. Raises DigestMismatch: then nothing of the upload is left."""
        got = self._hasher.hexdigest()
        if self._taken != self._size or got != self._digest:
            self.drop()
            raise DigestMismatch(mismatch(self._digest, self._size, got, self._taken))

    def finish(self) -> None:
        """Complete the upload if the digest is right. Raises DigestMismatch: then nothing of it is left."""
        self.check()
        for future, _ in self._sending:
            future.result()
        parts = [{"PartNumber": number, "ETag": self._etags[number]} for number in sorted(self._etags)]
        with self._bucket.failures():
            self._bucket.client.complete_multipart_upload(**self._target(), MultipartUpload={"Parts": parts})
        self._over = True
        if self._kept:
            self._bucket.delete_document(upload_key(self._digest))

    def drop(self) -> None:
        """Forget what has arrived. Errors are passed over: garbage collection finds what stays."""
        self._settle()
        self._over = True
        with contextlib.suppress(StoreError):
            abort(self._bucket, self._digest, self._state.upload_id)
            if self._kept:
                self._bucket.delete_document(upload_key(self._digest))

    def __enter__(self) -> "S3Upload":
        return self

    def __exit__(self, *_: object) -> None:
        self._settle()
        if not self._over and not self._kept:
            self.drop()

    def _settle(self) -> None:
        """Wait for what is being sent: a part that arrives after the upload was aborted would stay for ever."""
        for future, part in self._sending:
            if future.cancel():
                part.release()
            else:
                future.exception()
        self._sending.clear()
        with self._lock:
            for part, _ in self._early.values():
                part.release()
            self._early.clear()

    def _raise_failure(self) -> None:
        for future, _ in self._sending:
            if future.done():
                future.result()
        self._sending = [sending for sending in self._sending if not sending[0].done()]

    def _send(self, number: int, part: Part, state: str | None) -> None:
        try:
            with self._bucket.failures():
                answer = self._bucket.client.upload_part(
                    **self._target(), PartNumber=number, Body=PartBody(part.view), ContentLength=len(part.view)
                )
        except BaseException:
            part.release()
            raise
        with self._lock:
            self._etags[number] = answer["ETag"]
            self._early[number] = part, state
            if self._noting:
                return  # whoever is at it notes this part too
            self._noting = True
        while self._note_arrived():
            pass

    def _note_arrived(self) -> bool:
        """Note what has arrived without a gap, and let go of its memory; False when there was nothing new.

        One thread at a time, and without the lock while the store is asked: other parts go on arriving.
        """
        with self._lock:
            arrived, noted = [], self._state
            while (following := self._arrived + 1) in self._early:
                part, state = self._early.pop(following)
                arrived.append(part)
                self._arrived = following
                # Without a state there is nothing to go on with: so after the last part, unless it ends a block.
                if state is not None:
                    noted = noted.model_copy(update={"parts": following, "sha256": state})
            if not arrived:
                self._noting = False
                return False
        try:
            if self._kept and noted is not self._state:
                self._bucket.put_document(upload_key(self._digest), noted.model_dump())
            self._state = noted
        except BaseException:
            with self._lock:
                self._noting = False
            raise
        finally:
            for one in arrived:
                one.release()
        return True

    def _begin(self) -> UploadState:
        with self._bucket.failures():
            answer = self._bucket.client.create_multipart_upload(Bucket=self._bucket.bucket, Key=blob_key(self._digest))
        state = UploadState(upload_id=answer["UploadId"], size=self._size, part_size=part_size(self._size))
        if self._kept:
            self._bucket.put_document(upload_key(self._digest), state.model_dump())
        return state

    def _find(self) -> UploadState | None:
        """What an earlier process left, if it can be gone on with. What cannot is dropped."""
        kept = kept_upload(self._bucket, self._digest)
        if kept is None:
            return None
        sizes: dict[int, int] = {}
        with contextlib.suppress(_UploadGone):
            for number, size, etag in _parts(self._bucket, self._digest, kept.upload_id):
                sizes[number], self._etags[number] = size, etag
        whole = kept.size == self._size and kept.part_size == part_size(self._size)
        expected = {
            number: min(kept.part_size, kept.size - (number - 1) * kept.part_size)
            for number in range(1, kept.parts + 1)
        }
        if whole and expected == {number: size for number, size in sizes.items() if number <= kept.parts}:
            self._etags = {number: etag for number, etag in self._etags.items() if number <= kept.parts}
            return kept
        log.info("an upload cannot be gone on with and begins again", digest=self._digest)
        self._etags = {}
        abort(self._bucket, self._digest, kept.upload_id)
        return None

    def _target(self) -> dict[str, str]:
        return _target(self._bucket, self._digest, self._state.upload_id)


def kept_upload(bucket: Bucket, digest: str) -> UploadState | None:
    """What is kept of an upload of this digest, or None. Raises StoreError."""
    try:
        document = bucket.get_document(upload_key(digest))
        return None if document is None else UploadState.model_validate(document)
    except (DocumentBroken, ValidationError):
        return None


def abort(bucket: Bucket, digest: str, upload_id: str) -> None:
    """End a multipart upload; its parts are gone. One that is not there is no error. Raises StoreError."""
    with contextlib.suppress(_UploadGone), _gone(), bucket.failures():
        bucket.client.abort_multipart_upload(**_target(bucket, digest, upload_id))


def _parts(bucket: Bucket, digest: str, upload_id: str) -> Iterator[tuple[int, int, str]]:
    """The parts that have arrived: number, size, ETag. Raises _UploadGone, StoreError."""
    with _gone(), bucket.failures():
        pages = bucket.client.get_paginator("list_parts").paginate(**_target(bucket, digest, upload_id))
        for page in pages:
            for part in page.get("Parts", ()):
                yield part["PartNumber"], part["Size"], part["ETag"]


def _target(bucket: Bucket, digest: str, upload_id: str) -> dict[str, str]:
    return {"Bucket": bucket.bucket, "Key": blob_key(digest), "UploadId": upload_id}


class _UploadGone(Exception):
    """The server knows no such upload."""


@contextlib.contextmanager
def _gone() -> Iterator[None]:
    try:
        yield
    except StoreError as error:
        cause = error.__cause__
        if isinstance(cause, ClientError) and cause.response.get("Error", {}).get("Code") in ("NoSuchUpload", "404"):
            raise _UploadGone from error
        raise


class PartBody:
    """A part as the file that the S3 client wants: pieces of the memory itself, no copies."""

    def __init__(self, view: memoryview) -> None:
        self._view = view
        self._at = 0

    def read(self, count: int | None = -1) -> memoryview:
        """The next bytes."""
        end = len(self._view) if count is None or count < 0 else self._at + count
        piece = self._view[self._at : end]
        self._at += len(piece)
        return piece

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to another place; for a second try."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: len(self._view)}[whence]
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        """Where the next byte is read."""
        return self._at


def unfinished_uploads(bucket: Bucket) -> Iterator[Unfinished]:
    """See `Store.unfinished`: what is noted, and the multipart uploads of blobs that no note tells of."""
    now = datetime.datetime.now(datetime.UTC)
    noted = set()
    for item in _listed(bucket, "list_objects_v2", "Contents", upload_key("").removesuffix(".json")):
        digest = item["Key"].rpartition("/")[2].removesuffix(".json")
        kept = kept_upload(bucket, digest)
        upload_id = kept.upload_id if kept else ""
        noted.add(upload_id)
        size = min(kept.parts * kept.part_size, kept.size) if kept else 0
        yield Unfinished(digest, size, (now - item["LastModified"]).total_seconds(), upload_id)
    for item in _listed(bucket, "list_multipart_uploads", "Uploads", blob_key("")):
        if item["UploadId"] not in noted:
            digest = item["Key"].rpartition("/")[2]
            yield Unfinished(digest, 0, (now - item["Initiated"]).total_seconds(), item["UploadId"])


def _listed(bucket: Bucket, operation: str, field: str, prefix: str) -> Iterator[dict[str, Any]]:
    with bucket.failures():
        try:
            for page in bucket.client.get_paginator(operation).paginate(Bucket=bucket.bucket, Prefix=prefix):
                yield from page.get(field, ())
        except ClientError as error:
            if error.response.get("Error", {}).get("Code") != "NoSuchBucket":
                raise
