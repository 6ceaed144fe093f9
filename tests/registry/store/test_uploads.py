"""The contract of resumable uploads in every store."""

import contextlib
import hashlib
import threading
from collections.abc import Callable

import pytest

from kit.net.part_stream import BufferPool
from registry.open_store import open_store
from registry.settings import RegistrySettings
from registry.store.interface import DigestMismatch, Store, Unfinished, Upload
from registry.store.part_size import MIN_PART
from tests.registry.conftest import StoreSettings
from tests.support.hub import random_bytes

SIZE = 3 * MIN_PART + 12_345
CONTENT = random_bytes("upload", SIZE)
DIGEST = hashlib.sha256(CONTENT).hexdigest()


def begin(store: Store, digest: str = DIGEST) -> Upload:
    return store.upload(digest, SIZE, threading.Event())


def feed(upload: Upload, content: bytes = CONTENT, *, parts: int = 100) -> None:
    buffers, start = BufferPool(1 << 30), upload.done
    while start < SIZE and parts > 0:
        part = buffers.acquire(start, min(upload.part_size, SIZE - start), wait_s=0)
        assert part is not None
        part.view[:] = content[start : start + len(part.view)]
        start += len(part.view)
        parts -= 1
        upload.write(part)


def unfinished(store: Store) -> list[Unfinished]:
    return list(store.unfinished())


def test_blob_appears_when_the_upload_is_finished(store: Store) -> None:
    with begin(store) as upload:
        feed(upload)
        assert store.blob_size(DIGEST) is None
        upload.finish()
    assert b"".join(store.read_blob(DIGEST)) == CONTENT
    assert unfinished(store) == []


@pytest.mark.parametrize("first", [0, 1, 2, 4])
def test_another_process_resumes_an_upload(store: Store, store_settings: StoreSettings, first: int) -> None:
    """Only the missing parts are written."""
    with begin(store) as upload:
        feed(upload, parts=first)
    assert store.blob_size(DIGEST) is None
    (left,) = unfinished(store)
    assert left.digest == DIGEST
    other = open_store(RegistrySettings(**store_settings))
    with contextlib.closing(other), begin(other) as upload:
        assert upload.done == min(first * MIN_PART, SIZE)
        assert left.size == upload.done
        feed(upload)
        upload.finish()
    assert b"".join(store.read_blob(DIGEST)) == CONTENT
    assert unfinished(store) == []


def test_upload_of_wrong_content_leaves_nothing(store: Store) -> None:
    """The next upload starts from the beginning."""
    with begin(store) as upload:
        feed(upload, b"?" + CONTENT[1:])
        with pytest.raises(DigestMismatch):
            upload.finish()
    assert store.blob_size(DIGEST) is None
    assert unfinished(store) == []
    with begin(store) as upload:
        assert upload.done == 0
        feed(upload)
        upload.finish()
    assert store.blob_size(DIGEST) == SIZE


def test_wrong_parts_of_an_earlier_process_are_detected(store: Store) -> None:
    with begin(store) as upload:
        feed(upload, b"?" + CONTENT[1:], parts=2)
    with begin(store) as upload:
        assert upload.done == 2 * MIN_PART
        feed(upload)
        with pytest.raises(DigestMismatch):
            upload.finish()
    assert store.blob_size(DIGEST) is None


def test_finish_before_the_last_part_is_refused(store: Store) -> None:
    with begin(store) as upload:
        feed(upload, parts=1)
        with pytest.raises(DigestMismatch):
            upload.finish()
    assert store.blob_size(DIGEST) is None


def test_unfinished_upload_can_be_dropped_twice(store: Store) -> None:
    """By its digest, or as listed."""
    drops: list[Callable[[], None]] = [
        lambda: store.drop_upload(DIGEST),
        lambda: store.drop_unfinished(unfinished(store)[0]),
    ]
    for drop in drops:
        with begin(store) as upload:
            feed(upload, parts=1)
        assert len(unfinished(store)) == 1
        drop()
        assert unfinished(store) == []
        store.drop_upload(DIGEST)
        with begin(store) as upload:
            assert upload.done == 0
            upload.drop()


def test_part_out_of_order_is_refused(store: Store) -> None:
    buffers = BufferPool(1 << 30)
    with begin(store) as upload:
        part = buffers.acquire(5, 10, wait_s=0)
        assert part is not None
        with pytest.raises(ValueError, match="not the next part"):
            upload.write(part)
        upload.drop()
    assert buffers.acquire(0, 1 << 30, wait_s=0) is not None
