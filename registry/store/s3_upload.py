"""A multipart upload into a bucket, several parts in parallel, resumable by another process.

`uploads/<digest>.json` holds the upload id; ListParts says which parts have arrived. S3 gives out no byte of a part
before the upload is complete, so the content of a resumed upload is read back and hashed after completion. Until then
the state document marks the object as not verified, and `S3Store.blob_size` treats it as missing.
"""

import contextlib
import datetime
import io
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import structlog
from botocore.exceptions import ClientError
from pydantic import BaseModel, Field, ValidationError

from kit.net.part_stream import Part
from kit.net.retry import check_stop
from registry.store.interface import (
    DocumentBroken,
    Store,
    StoreError,
    Unfinished,
    Upload,
    blob_key,
    read_digest,
    upload_key,
)
from registry.store.part_size import part_size

log = structlog.get_logger(__name__)

ABSENT = frozenset({"404", "NoSuchKey", "NoSuchBucket", "NotFound"})


class Bucket(Store, Protocol):
    """The part of `S3Store` that an upload uses."""

    client: Any
    bucket: str
    senders: ThreadPoolExecutor

    def failures(self) -> contextlib.AbstractContextManager[None]:
        """Convert the client's errors to StoreError."""

    def object_size(self, digest: str) -> int | None:
        """The size of the blob's object, verified or not."""


class UploadState(BaseModel):
    """The document `uploads/<digest>.json`."""

    upload_id: str
    size: int
    part_size: int
    is_unverified: bool = Field(default=False, description="the object may exist, and its digest is not verified")


class S3Upload(Upload):
    """See `registry.store.interface.Upload`. Without `resumable`, leaving the context drops an unfinished upload."""

    def __init__(self, bucket: Bucket, digest: str, size: int, stop: threading.Event, *, resumable: bool) -> None:
        super().__init__(digest, size)
        self._bucket = bucket
        self._stop = stop
        self._resumable = resumable
        self._sending: list[tuple[Future[None], Part]] = []
        self._etags: dict[int, str] = {}
        self._is_complete = False
        self._is_closed = False
        self._state = (self._resume() if resumable else None) or self._create()
        self.part_size = self._state.part_size
        self._next_part = len(self._etags) + 1
        self.done = self._position = size if self._is_complete else min(len(self._etags) * self.part_size, size)
        if self.done:
            self._hasher = None

    def _resume(self) -> UploadState | None:
        """The state of an earlier upload, with its parts in `_etags`; None, after removing it, if it is unusable."""
        state = upload_state(self._bucket, self._digest)
        if state is None:
            return None
        if state.size == self._size and state.part_size == part_size(self._size):
            try:
                self._etags = _received(self._bucket, self._digest, state).etags
                return state
            except _UploadGone:
                self._is_complete = state.is_unverified and self._bucket.object_size(self._digest) == self._size
                if self._is_complete:
                    return state
        log.info("upload cannot be resumed and starts again", digest=self._digest)
        discard(self._bucket, self._digest, state)
        return None

    def _create(self) -> UploadState:
        with self._bucket.failures():
            response = self._bucket.client.create_multipart_upload(
                Bucket=self._bucket.bucket, Key=blob_key(self._digest)
            )
        state = UploadState(upload_id=response["UploadId"], size=self._size, part_size=part_size(self._size))
        if self._resumable:
            self._bucket.put_document(upload_key(self._digest), state.model_dump())
        return state

    def _write(self, part: Part) -> None:
        for future, _ in self._sending:
            if future.done():
                future.result()
        self._sending = [sending for sending in self._sending if not sending[0].done()]
        self._sending.append((self._bucket.senders.submit(self._send, self._next_part, part), part))
        self._next_part += 1

    def _send(self, number: int, part: Part) -> None:
        try:
            with self._bucket.failures():
                response = self._bucket.client.upload_part(
                    **self._target(), PartNumber=number, Body=PartBody(part.view), ContentLength=len(part.view)
                )
            self._etags[number] = response["ETag"]
        finally:
            part.release()

    def _read_digest(self) -> str:
        if self._hasher is not None:
            return super()._read_digest()
        if not self._is_complete:
            self._state = self._state.model_copy(update={"is_unverified": True})
            self._bucket.put_document(upload_key(self._digest), self._state.model_dump())
            self._complete()
        log.info("reading a resumed upload back to verify it", digest=self._digest, size=self._size)
        return read_digest(self._bucket, self._digest, lambda _count: check_stop(self._stop))

    def _publish(self) -> None:
        if not self._is_complete:
            self._complete()
        self._is_closed = True
        self._bucket.delete_document(upload_key(self._digest))

    def _complete(self) -> None:
        for future, _ in self._sending:
            future.result()
        # Parts are named by ETag: one that another process overwrites meanwhile makes this fail.
        parts = [{"PartNumber": number, "ETag": self._etags[number]} for number in sorted(self._etags)]
        with self._bucket.failures():
            self._bucket.client.complete_multipart_upload(**self._target(), MultipartUpload={"Parts": parts})
        self._is_complete = True

    def drop(self) -> None:
        """Abort the upload. Errors are ignored: garbage collection removes the remains."""
        self._settle()
        self._is_closed = True
        with contextlib.suppress(StoreError):
            if self._resumable:
                discard(self._bucket, self._digest, self._state)
            else:
                abort(self._bucket, self._digest, self._state.upload_id)

    def __exit__(self, *_: object) -> None:
        self._settle()
        if not self._is_closed and not self._resumable:
            self.drop()

    def _settle(self) -> None:
        """Wait for the parts in flight: one that arrives after an abort would stay in the bucket forever."""
        for future, part in self._sending:
            if future.cancel():
                part.release()
            else:
                future.exception()
        self._sending.clear()

    def _target(self) -> dict[str, str]:
        return _target(self._bucket, self._digest, self._state.upload_id)


def upload_state(bucket: Bucket, digest: str) -> UploadState | None:
    """The state of the unfinished upload of this digest, or None. Raises StoreError."""
    try:
        document = bucket.get_document(upload_key(digest))
        return None if document is None else UploadState.model_validate(document)
    except (DocumentBroken, ValidationError):
        return None


def discard(bucket: Bucket, digest: str, state: UploadState) -> None:
    """Abort the upload; delete its object if it was not verified, and its state. Raises StoreError."""
    abort(bucket, digest, state.upload_id)
    # The state is gone once the object is verified.
    if upload_state(bucket, digest) == state:
        if state.is_unverified:
            bucket.delete_blob(digest)
        bucket.delete_document(upload_key(digest))


def abort(bucket: Bucket, digest: str, upload_id: str) -> None:
    """Abort a multipart upload and so delete its parts; a missing one is no error. Raises StoreError."""
    with contextlib.suppress(_UploadGone), _gone(), bucket.failures():
        bucket.client.abort_multipart_upload(**_target(bucket, digest, upload_id))


def _target(bucket: Bucket, digest: str, upload_id: str) -> dict[str, str]:
    return {"Bucket": bucket.bucket, "Key": blob_key(digest), "UploadId": upload_id}


class _Received(BaseModel):
    """The parts from the first to the first gap."""

    etags: dict[int, str] = {}
    size: int = 0
    last_modified: datetime.datetime | None = None


def _received(bucket: Bucket, digest: str, state: UploadState) -> _Received:
    """List the parts that have arrived. Raises _UploadGone, StoreError."""
    found = _Received()
    with _gone(), bucket.failures():
        pages = bucket.client.get_paginator("list_parts").paginate(**_target(bucket, digest, state.upload_id))
        for page in pages:
            for part in page.get("Parts", ()):
                expected = min(state.part_size, state.size - found.size)
                if part["PartNumber"] != len(found.etags) + 1 or part["Size"] != expected:
                    return found
                found.etags[part["PartNumber"]] = part["ETag"]
                found.size += expected
                found.last_modified = part["LastModified"]
    return found


class _UploadGone(Exception):
    """The server has no such upload."""


@contextlib.contextmanager
def _gone() -> Iterator[None]:
    try:
        yield
    except StoreError as error:
        cause = error.__cause__
        if isinstance(cause, ClientError) and error_code(cause) in ("NoSuchUpload", "404"):
            raise _UploadGone from error
        raise


class PartBody:
    """A part as the file object that the S3 client reads, without copies."""

    def __init__(self, view: memoryview) -> None:
        self._view = view
        self._position = 0

    def read(self, count: int | None = -1) -> memoryview:
        """Return the next bytes."""
        end = len(self._view) if count is None or count < 0 else self._position + count
        piece = self._view[self._position : end]
        self._position += len(piece)
        return piece

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Change the position; the client rewinds for a retry."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: len(self._view)}[whence]
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        """Return the position."""
        return self._position


def unfinished_uploads(bucket: Bucket) -> Iterator[Unfinished]:
    """Yield the uploads with a state document, then multipart uploads of blobs without one."""
    now = datetime.datetime.now(datetime.UTC)
    with_state = set()
    for item in listed(bucket, "list_objects_v2", "Contents", upload_key("").removesuffix(".json")):
        digest = item["Key"].rpartition("/")[2].removesuffix(".json")
        state, received = upload_state(bucket, digest), _Received()
        if state is not None:
            with_state.add(state.upload_id)
            with contextlib.suppress(_UploadGone):
                received = _received(bucket, digest, state)
        last_write = max(item["LastModified"], received.last_modified or item["LastModified"])
        upload_id = state.upload_id if state else ""
        yield Unfinished(digest, received.size, (now - last_write).total_seconds(), upload_id)
    for item in listed(bucket, "list_multipart_uploads", "Uploads", blob_key("")):
        if item["UploadId"] not in with_state:
            digest = item["Key"].rpartition("/")[2]
            yield Unfinished(digest, 0, (now - item["Initiated"]).total_seconds(), item["UploadId"])


def listed(bucket: Bucket, operation: str, field: str, prefix: str) -> Iterator[dict[str, Any]]:
    """Yield the entries of a paginated listing; none if the bucket does not exist. Raises StoreError."""
    with bucket.failures(), suppress_absent():
        for page in bucket.client.get_paginator(operation).paginate(Bucket=bucket.bucket, Prefix=prefix):
            yield from page.get(field, ())


@contextlib.contextmanager
def suppress_absent() -> Iterator[None]:
    """Suppress the client's error for a missing object or bucket."""
    try:
        yield
    except ClientError as error:
        if error_code(error) not in ABSENT:
            raise


def error_code(error: ClientError) -> str:
    """S3's code of an error."""
    return str(error.response.get("Error", {}).get("Code", ""))
