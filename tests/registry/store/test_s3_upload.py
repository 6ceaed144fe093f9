"""Resumed multipart uploads, whose content S3 shows only after completion."""

import hashlib
import threading
from collections.abc import Iterator

import pytest

from kit.net.retry import Cancelled
from registry.open_store import open_store
from registry.settings import RegistrySettings
from registry.store.interface import DigestMismatch, Store, blob_key
from tests.registry.conftest import new_s3_settings
from tests.registry.store.test_uploads import CONTENT, DIGEST, SIZE, begin, feed, unfinished

pytestmark = pytest.mark.engines


@pytest.fixture
def bucket(request: pytest.FixtureRequest) -> Iterator[Store]:
    opened = open_store(RegistrySettings(**new_s3_settings(request)))
    yield opened
    opened.close()


def complete_without_verifying(store: Store, content: bytes) -> None:
    """Resume an upload, and stop it between completion and verification, as a kill would."""
    with begin(store) as upload:
        feed(upload, content, parts=1)
    stop = threading.Event()
    with store.upload(DIGEST, SIZE, stop) as upload:
        feed(upload, content)
        stop.set()
        with pytest.raises(Cancelled):
            upload.finish()
    assert store.list_documents("blobs/") == [blob_key(DIGEST)]


def test_completed_upload_is_missing_until_verified(bucket: Store) -> None:
    complete_without_verifying(bucket, CONTENT)
    assert bucket.blob_size(DIGEST) is None
    with begin(bucket) as upload:
        assert upload.done == SIZE
        upload.finish()
    assert bucket.blob_size(DIGEST) == SIZE
    assert unfinished(bucket) == []


def test_completed_upload_with_wrong_content_is_deleted(bucket: Store) -> None:
    complete_without_verifying(bucket, b"?" + CONTENT[1:])
    with begin(bucket) as upload, pytest.raises(DigestMismatch):
        upload.finish()
    assert bucket.list_documents("blobs/") == []
    assert unfinished(bucket) == []


def test_dropping_an_unverified_upload_deletes_its_object(bucket: Store) -> None:
    complete_without_verifying(bucket, b"?" + CONTENT[1:])
    bucket.drop_upload(DIGEST)
    assert bucket.blob_size(DIGEST) is None
    assert bucket.list_documents("blobs/") == []


def test_putting_the_blob_replaces_an_unverified_upload(bucket: Store) -> None:
    complete_without_verifying(bucket, b"?" + CONTENT[1:])
    bucket.put_blob(DIGEST, SIZE, [CONTENT])
    assert bucket.blob_size(DIGEST) == SIZE
    assert hashlib.sha256(b"".join(bucket.read_blob(DIGEST))).hexdigest() == DIGEST
