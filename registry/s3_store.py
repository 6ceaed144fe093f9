"""A store in a bucket of an S3 server (MinIO, SeaweedFS, AWS ...), with the same layout as the folder.

boto3, because its multipart calls are public: a download can later be taken up again at its last part. Blobs go up in
parts, several at once, and the object appears only when the upload is completed, which happens only when the digest is
right. Nothing is asked of the server before the first use, so the registry starts before its store does.
"""

import contextlib
import datetime
import hashlib
import json
import mmap
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from registry.s3_parts import MIN_PART, part_size
from registry.store import Blob, DigestMismatch, Document, StoreError, StoreFull, blob_key, mismatch, parse_document

CHUNK = 1 << 20
# How long `check` waits for a connection, and then for an answer.
CHECK_S = 2
# Parts in memory at once, over all uploads: 6 of 16 MiB are what keeps a local server's disks busy.
PARTS_IN_FLIGHT = 6
_ABSENT = frozenset({"404", "NoSuchKey", "NoSuchBucket", "NotFound"})
_TAKEN = frozenset({"412", "PreconditionFailed", "409", "ConditionalRequestConflict"})
_NO_ROOM = frozenset(
    {"InsufficientStorage", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded", "QuotaExceeded", "507"}
)


class S3Store:
    """See `registry.store.Store`."""

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
            max_pool_connections=4 * PARTS_IN_FLIGHT,
            signature_version="s3v4",
            s3={"addressing_style": "path"},
            # The sha256 proves the content already; S3's own checksums would be a second one, unknown to some servers.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        self._bucket = bucket
        self._presigned_s = presigned_s
        self._endpoint = endpoint
        self._client = session.client("s3", endpoint_url=endpoint, config=config)
        impatient = Config(connect_timeout=CHECK_S, read_timeout=CHECK_S, retries={"total_max_attempts": 1})
        self._asking = session.client("s3", endpoint_url=endpoint, config=config.merge(impatient))
        self._public = session.client("s3", endpoint_url=public_endpoint or endpoint, config=config)
        self._uploads = ThreadPoolExecutor(PARTS_IN_FLIGHT, thread_name_prefix="s3-part")
        self._slots = threading.BoundedSemaphore(PARTS_IN_FLIGHT)
        self._lock = threading.Lock()
        self._bucket_made = False

    @property
    def where(self) -> str:
        """The bucket and its server."""
        return f"s3://{self._bucket} at {self._endpoint}"

    def check(self) -> None:
        """Ask for the bucket; one that is not there yet will be made when something is put into it."""
        with self._failures():
            try:
                self._asking.head_bucket(Bucket=self._bucket)
            except ClientError as error:
                if not _is_absent(error):
                    raise

    def free_bytes(self) -> int | None:
        """S3 does not tell."""
        return None

    def blob_size(self, digest: str) -> int | None:
        """The object's size, or None."""
        with self._failures():
            try:
                return int(self._client.head_object(Bucket=self._bucket, Key=blob_key(digest))["ContentLength"])
            except ClientError as error:
                if _is_absent(error):
                    return None
                raise

    def put_blob(self, digest: str, size: int, chunks: Iterable[bytes]) -> None:
        """Put small blobs in one piece, others in parts of at least 16 MiB, up to six of them at once."""
        if self.blob_size(digest) == size:
            return
        self._make_bucket()
        if size <= MIN_PART:
            self._put_whole(digest, size, chunks)
        else:
            self._put_parts(digest, size, chunks)

    def _put_whole(self, digest: str, size: int, chunks: Iterable[bytes]) -> None:
        counted, body = _Counted(chunks), bytearray()
        for chunk in counted:
            body += chunk
            if counted.size > size:
                break
        counted.check(digest, size)
        with self._failures():
            self._client.put_object(Bucket=self._bucket, Key=blob_key(digest), Body=body)

    def _put_parts(self, digest: str, size: int, chunks: Iterable[bytes]) -> None:
        target: dict[str, Any] = {"Bucket": self._bucket, "Key": blob_key(digest)}
        with self._failures():
            target["UploadId"] = self._client.create_multipart_upload(**target)["UploadId"]
        parts: list[Future[dict[str, Any]]] = []
        counted = _Counted(chunks)
        try:
            for body in self._bodies(counted, size):
                parts.append(self._uploads.submit(self._put_part, target, len(parts) + 1, body))
                _raise_first_failure(parts)
            counted.check(digest, size)
            finished = [part.result() for part in parts]
            with self._failures():
                self._client.complete_multipart_upload(**target, MultipartUpload={"Parts": finished})
        except BaseException:
            for part in parts:
                if part.cancel():
                    self._slots.release()
                else:
                    part.exception()  # wait: a part that arrives after the abort would stay for ever
            with contextlib.suppress(StoreError), self._failures():
                self._client.abort_multipart_upload(**target)
            raise

    def _bodies(self, chunks: Iterable[bytes], size: int) -> Iterator[mmap.mmap]:
        """Cut `chunks` into the parts of `size` bytes. Each part takes a slot, which `_put_part` gives back.

        Anonymous maps, since their memory goes back to the system at once: what malloc keeps of freed buffers of this
        size, over several threads, was as much again. Ends early where `chunks` do.
        """
        source = iter(chunks)
        rest, done = b"", 0
        while done < size:
            self._slots.acquire()
            body = mmap.mmap(-1, min(part_size(size), size - done))
            try:
                while (room := len(body) - body.tell()) > 0 and (piece := rest or next(source, b"")):
                    body.write(piece[:room])
                    rest = piece[room:]
            except BaseException:
                self._give_back(body)
                raise
            if body.tell() < len(body):
                self._give_back(body)
                return
            done += len(body)
            body.seek(0)
            yield body
        next(source, None)  # a byte too many is counted, and so found

    def _give_back(self, body: mmap.mmap) -> None:
        body.close()
        self._slots.release()

    def _put_part(self, target: dict[str, Any], number: int, body: mmap.mmap) -> dict[str, Any]:
        try:
            with self._failures():
                answer = self._client.upload_part(**target, PartNumber=number, Body=body)
            return {"PartNumber": number, "ETag": answer["ETag"]}
        finally:
            self._give_back(body)

    def read_blob(self, digest: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Yield the bytes of one ranged GET."""
        if end is not None and end <= start:
            return
        last = "" if end is None else str(end - 1)
        asked = {"Range": f"bytes={start}-{last}"} if start or end is not None else {}
        with self._failures():
            answer = self._client.get_object(Bucket=self._bucket, Key=blob_key(digest), **asked)
            with contextlib.closing(answer["Body"]) as body:
                yield from body.iter_chunks(CHUNK)

    def delete_blob(self, digest: str) -> None:
        """Delete the object."""
        self.delete_document(blob_key(digest))

    def blobs(self) -> Iterator[Blob]:
        """Yield the objects below `blobs/sha256/`."""
        for item in self._objects("blobs/sha256/"):
            age = datetime.datetime.now(datetime.UTC) - item["LastModified"]
            yield Blob(item["Key"].rpartition("/")[2], int(item["Size"]), max(age.total_seconds(), 0.0))

    def local_path(self, digest: str) -> Path | None:
        """A bucket has no files."""
        return None

    def presign(self, digest: str, *, inside: bool) -> str | None:
        """Sign a GET; no request is made for it."""
        client = self._client if inside else self._public
        with self._failures():
            url: str = client.generate_presigned_url(
                "get_object", Params={"Bucket": self._bucket, "Key": blob_key(digest)}, ExpiresIn=self._presigned_s
            )
        return url

    def get_document(self, key: str) -> Document | None:
        """Get the object and parse it."""
        with self._failures():
            try:
                answer = self._client.get_object(Bucket=self._bucket, Key=key)
            except ClientError as error:
                if _is_absent(error):
                    return None
                raise
            with contextlib.closing(answer["Body"]) as body:
                data = body.read()
        return parse_document(self, key, data)

    def put_document(self, key: str, document: Document) -> None:
        """Put the object; S3 replaces objects atomically."""
        self._make_bucket()
        body = json.dumps(document, ensure_ascii=False, indent=1).encode()
        with self._failures():
            self._client.put_object(Bucket=self._bucket, Key=key, Body=body, ContentType="application/json")

    def create_document(self, key: str, document: Document) -> bool:
        """Put the object on the condition that there is none; the server sees to it."""
        self._make_bucket()
        body = json.dumps(document, ensure_ascii=False, indent=1).encode()
        with self._failures():
            try:
                self._client.put_object(
                    Bucket=self._bucket, Key=key, Body=body, ContentType="application/json", IfNoneMatch="*"
                )
            except ClientError as error:
                if _code(error) in _TAKEN:
                    return False
                raise
        return True

    def delete_document(self, key: str) -> None:
        """Delete the object; S3 does not mind when there is none."""
        with self._failures():
            try:
                self._client.delete_object(Bucket=self._bucket, Key=key)
            except ClientError as error:
                if not _is_absent(error):
                    raise

    def list_documents(self, prefix: str) -> list[str]:
        """All keys below `prefix`."""
        return sorted(item["Key"] for item in self._objects(prefix))

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Lock against the threads of this process. One registry per bucket: S3 has no lock that all servers know."""
        with self._lock:
            yield

    def close(self) -> None:
        """Close the connections; uploads under way end in errors."""
        self._uploads.shutdown(wait=False, cancel_futures=True)
        self._client.close()
        self._asking.close()
        self._public.close()

    def _objects(self, prefix: str) -> Iterator[Any]:
        with self._failures():
            try:
                for page in self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=prefix):
                    yield from page.get("Contents", ())
            except ClientError as error:
                if not _is_absent(error):
                    raise

    def _make_bucket(self) -> None:
        if self._bucket_made:
            return
        with self._failures():
            try:
                self._client.head_bucket(Bucket=self._bucket)
            except ClientError as error:
                if not _is_absent(error):
                    raise
                with contextlib.suppress(self._client.exceptions.BucketAlreadyOwnedByYou):
                    self._client.create_bucket(Bucket=self._bucket)
        self._bucket_made = True

    @contextlib.contextmanager
    def _failures(self) -> Iterator[None]:
        """Turn the client's errors into ours, once, here. Its messages hold no credentials."""
        try:
            yield
        except ClientError as error:
            code = _code(error)
            reason = error.response.get("Error", {}).get("Message") or code
            if code in _NO_ROOM:
                raise StoreFull(f"{self.where} is full ({reason}). Add disks or delete a model.") from error
            if code in ("403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch"):
                reason = f"{reason}. Check S3_ACCESS_KEY and S3_SECRET_KEY"
            raise StoreError(f"{self.where} refused {error.operation_name}: {reason}.") from error
        except (BotoCoreError, OSError) as error:
            raise StoreError(f"{self.where} does not answer: {error}. Check S3_ENDPOINT.") from error


class _Counted(Iterable[bytes]):
    """Counts and hashes what passes."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self.size = 0
        self._chunks = chunks
        self._hasher = hashlib.sha256()

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._chunks:
            self.size += len(chunk)
            self._hasher.update(chunk)
            if chunk:
                yield chunk

    def check(self, digest: str, size: int) -> None:
        """Raise DigestMismatch unless what passed is the blob promised."""
        got = self._hasher.hexdigest()
        if self.size != size or got != digest:
            raise DigestMismatch(mismatch(digest, size, got, self.size))


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _is_absent(error: ClientError) -> bool:
    return _code(error) in _ABSENT


def _raise_first_failure(parts: list[Future[dict[str, Any]]]) -> None:
    for part in parts:
        if part.done():
            part.result()
