"""A store in a bucket of an S3 server (MinIO, SeaweedFS, AWS ...), with the same layout as the folder.

Uses boto3, whose multipart calls are public, so that an interrupted upload can be resumed. No request is sent before
the first use, so the registry may start before its store.
"""

import contextlib
import datetime
import json
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from kit.net.part_stream import BufferPool, TooLong, cut
from registry.store.interface import (
    Blob,
    Bytes,
    DigestMismatch,
    Document,
    StoreDown,
    StoreError,
    StoreFull,
    Unfinished,
    blob_key,
    parse_document,
    upload_key,
    verified,
)
from registry.store.part_size import MIN_PART
from registry.store.s3_upload import (
    ABSENT,
    PartBody,
    S3Upload,
    abort,
    discard,
    error_code,
    listed,
    suppress_absent,
    unfinished_uploads,
    upload_state,
)

CHUNK = 1 << 20
# Timeout of `check` for a connection, and again for a response, in seconds.
CHECK_S = 2
# Parts in memory, over all uploads: 6 of 16 MiB keep a local server's disks busy.
PARTS_IN_FLIGHT = 6
BUFFERS = PARTS_IN_FLIGHT * MIN_PART
_BUSY = frozenset({"SlowDown", "RequestTimeout", "429"})
_TAKEN = frozenset({"412", "PreconditionFailed", "409", "ConditionalRequestConflict"})
_NO_SPACE = frozenset(
    {"InsufficientStorage", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded", "QuotaExceeded", "507"}
)


class S3Store:
    """See `registry.store.interface.Store`."""

    def __init__(
        self,
        bucket: str,
        *,
        endpoint: str,
        access_key: str,
        secret_key: str,
        public_endpoint: str | None = None,
        region: str = "us-east-1",
        presigned_s: int = 3600,
    ) -> None:
        session = boto3.session.Session(
            aws_access_key_id=access_key, aws_secret_access_key=secret_key, region_name=region
        )
        config = Config(
            connect_timeout=5,
            read_timeout=60,
            retries={"mode": "standard", "max_attempts": 4},
            proxies={},  # the server is in our own network: ignore HTTP_PROXY
            max_pool_connections=4 * PARTS_IN_FLIGHT,
            signature_version="s3v4",
            s3={"addressing_style": "path"},
            # The signature covers each part's sha256, so S3's own checksums, which some servers lack, add nothing.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        self.bucket = bucket
        self._presigned_s = presigned_s
        self.where = f"s3://{bucket} at {endpoint}"
        self.client = session.client("s3", endpoint_url=endpoint, config=config)
        check_config = Config(connect_timeout=CHECK_S, read_timeout=CHECK_S, retries={"total_max_attempts": 1})
        self._check_client = session.client("s3", endpoint_url=endpoint, config=config.merge(check_config))
        self._public = session.client("s3", endpoint_url=public_endpoint or endpoint, config=config)
        self.senders = ThreadPoolExecutor(PARTS_IN_FLIGHT, thread_name_prefix="s3-part")
        self._buffers = BufferPool(BUFFERS)
        self._lock = threading.Lock()
        self._bucket_exists = False

    def check(self) -> None:
        """Query the bucket; a missing one is no error, since the first write creates it."""
        with self.failures(), suppress_absent():
            self._check_client.head_bucket(Bucket=self.bucket)

    def free_bytes(self) -> int | None:
        """None: S3 does not report it."""
        return None

    def blob_size(self, digest: str) -> int | None:
        """The object's size, or None; a resumed upload counts only once it is verified."""
        size = self.object_size(digest)
        if size is not None and size > MIN_PART:  # smaller blobs are put in one piece
            state = upload_state(self, digest)
            if state is not None and state.is_unverified:
                return None
        return size

    def object_size(self, digest: str) -> int | None:
        """The object's size, verified or not, or None."""
        with self.failures(), suppress_absent():
            return int(self.client.head_object(Bucket=self.bucket, Key=blob_key(digest))["ContentLength"])
        return None

    def put_blob(self, digest: str, size: int, chunks: Iterable[Bytes]) -> None:
        """Put small blobs in one request, others as multipart uploads."""
        if self.blob_size(digest) == size:
            return
        self._create_bucket()
        if size <= MIN_PART:
            pieces = list(verified(chunks, digest, size))
            body = PartBody(memoryview(pieces[0])) if len(pieces) == 1 else b"".join(pieces)
            with self.failures():
                self.client.put_object(Bucket=self.bucket, Key=blob_key(digest), Body=body, ContentLength=size)
            return
        with S3Upload(self, digest, size, threading.Event(), resumable=False) as upload:
            try:
                for part in cut(chunks, size, upload.part_size, buffers=self._buffers):
                    upload.write(part)
            except TooLong:
                raise DigestMismatch(f"expected {size} bytes, got more") from None
            upload.finish()

    def upload(self, digest: str, size: int, stop: threading.Event) -> S3Upload:
        """Start a multipart upload, or resume the one in `uploads/<digest>.json`."""
        self._create_bucket()
        return S3Upload(self, digest, size, stop, resumable=True)

    def drop_upload(self, digest: str) -> None:
        """Abort the upload and delete its state."""
        state = upload_state(self, digest)
        if state is not None:
            discard(self, digest, state)
        else:
            self.delete_document(upload_key(digest))

    def unfinished(self) -> Iterator[Unfinished]:
        """Yield the uploads with a state document, and multipart uploads without one."""
        return unfinished_uploads(self)

    def drop_unfinished(self, unfinished: Unfinished) -> None:
        """Abort the multipart upload, and delete the state if it belongs to it."""
        state = upload_state(self, unfinished.digest)
        if state is not None and state.upload_id == unfinished.upload_id:
            self.drop_upload(unfinished.digest)
        elif unfinished.upload_id:
            abort(self, unfinished.digest, unfinished.upload_id)
        else:
            self.delete_document(upload_key(unfinished.digest))

    def read_blob(self, digest: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Stream the body of one ranged GET."""
        if end is not None and end <= start:
            return
        last = "" if end is None else str(end - 1)
        headers = {"Range": f"bytes={start}-{last}"} if start or end is not None else {}
        with self.failures():
            response = self.client.get_object(Bucket=self.bucket, Key=blob_key(digest), **headers)
            with contextlib.closing(response["Body"]) as body:
                yield from body.iter_chunks(CHUNK)

    def delete_blob(self, digest: str) -> None:
        """Delete the object."""
        self.delete_document(blob_key(digest))

    def blobs(self) -> Iterator[Blob]:
        """Yield the objects below `blobs/sha256/`."""
        for item in listed(self, "list_objects_v2", "Contents", blob_key("")):
            age = datetime.datetime.now(datetime.UTC) - item["LastModified"]
            yield Blob(item["Key"].rpartition("/")[2], int(item["Size"]), max(age.total_seconds(), 0.0))

    def local_path(self, digest: str) -> Path | None:
        """None: a bucket has no local files."""
        return None

    def presign(self, digest: str, *, inside: bool) -> str | None:
        """Sign a GET, without a request to the server."""
        client = self.client if inside else self._public
        with self.failures():
            url: str = client.generate_presigned_url(
                "get_object", Params={"Bucket": self.bucket, "Key": blob_key(digest)}, ExpiresIn=self._presigned_s
            )
        return url

    def get_document(self, key: str) -> Document | None:
        """Get the object and parse it."""
        with self.failures(), suppress_absent():
            response = self.client.get_object(Bucket=self.bucket, Key=key)
            with contextlib.closing(response["Body"]) as body:
                data = body.read()
            return parse_document(self, key, data)
        return None

    def put_document(self, key: str, document: Document) -> None:
        """Write the document; atomically replaces a previous version."""
        with self.failures():
            self._put_document(key, document)

    def create_document(self, key: str, document: Document) -> bool:
        """Put the object with If-None-Match: *, which the server checks atomically."""
        with self.failures():
            try:
                self._put_document(key, document, IfNoneMatch="*")
            except ClientError as error:
                if error_code(error) in _TAKEN:
                    return False
                raise
        return True

    def _put_document(self, key: str, document: Document, **conditions: str) -> None:
        self._create_bucket()
        body = json.dumps(document, ensure_ascii=False, indent=1).encode()
        self.client.put_object(Bucket=self.bucket, Key=key, Body=body, ContentType="application/json", **conditions)

    def delete_document(self, key: str) -> None:
        """Delete the object; a missing one is no error."""
        with self.failures(), suppress_absent():
            self.client.delete_object(Bucket=self.bucket, Key=key)

    def list_documents(self, prefix: str) -> list[str]:
        """The keys below `prefix`."""
        return sorted(item["Key"] for item in listed(self, "list_objects_v2", "Contents", prefix))

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Lock out other threads only: S3 has no locks, so a bucket is for one registry."""
        with self._lock:
            yield

    def close(self) -> None:
        """Close the connections; uploads in flight fail."""
        self.senders.shutdown(wait=False, cancel_futures=True)
        self.client.close()
        self._check_client.close()
        self._public.close()

    def _create_bucket(self) -> None:
        if self._bucket_exists:
            return
        with self.failures():
            try:
                self.client.head_bucket(Bucket=self.bucket)
            except ClientError as error:
                if error_code(error) not in ABSENT:
                    raise
                with contextlib.suppress(self.client.exceptions.BucketAlreadyOwnedByYou):
                    self.client.create_bucket(Bucket=self.bucket)
        self._bucket_exists = True

    @contextlib.contextmanager
    def failures(self) -> Iterator[None]:
        """Convert the client's errors to StoreError. Its messages contain no credentials."""
        try:
            yield
        except ClientError as error:
            code = error_code(error)
            status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
            reason = error.response.get("Error", {}).get("Message") or code
            if code in _NO_SPACE:
                raise StoreFull(f"{self.where} is full ({reason}). Add disks or delete a model.") from error
            if code in ("403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch"):
                reason = f"{reason}. Check S3_ACCESS_KEY and S3_SECRET_KEY"
            kind = StoreDown if status >= 500 or code in _BUSY else StoreError
            raise kind(f"{self.where} refused {error.operation_name}: {reason}.") from error
        except (BotoCoreError, OSError) as error:
            raise StoreDown(f"{self.where} is unreachable: {error}. Check S3_ENDPOINT.") from error
