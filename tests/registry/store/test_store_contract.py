"""The contract of every store."""

import contextlib
import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from registry.open_store import open_store
from registry.settings import RegistrySettings
from registry.store.interface import DigestMismatch, Store, StoreError
from tests.registry.conftest import StoreSettings
from tests.support import plain_http
from tests.support.hub import digests, random_bytes

MIB = 1 << 20


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def chunks_of(data: bytes, size: int = MIB) -> Iterator[bytes]:
    return (data[at : at + size] for at in range(0, len(data), size))


def put(store: Store, data: bytes) -> str:
    store.put_blob(sha256(data), len(data), chunks_of(data))
    return sha256(data)


@pytest.mark.parametrize("size", [0, 1, MIB, 40 * MIB + 17])
def test_blob_is_read_back_unchanged(store: Store, size: int) -> None:
    data = random_bytes("x", size)
    digest = put(store, data)
    assert store.blob_size(digest) == size
    assert b"".join(store.read_blob(digest)) == data
    assert digests(store) == {digest}


def test_range_excludes_its_end(store: Store) -> None:
    data = random_bytes("r", 3 * MIB)
    digest = put(store, data)
    for start, end in [(0, 1), (5, 100), (MIB - 1, 2 * MIB + 1), (10, None), (7, 7)]:
        assert b"".join(store.read_blob(digest, start, end)) == data[start:end]


def test_chunks_that_do_not_divide_the_part_size_are_joined(store: Store) -> None:
    data = random_bytes("seams", 34 * MIB + 5)
    store.put_blob(sha256(data), len(data), chunks_of(data, 700_001))
    assert sha256(b"".join(store.read_blob(sha256(data)))) == sha256(data)


@pytest.mark.parametrize("size", [1000, 34 * MIB])
@pytest.mark.parametrize("wrong", ["changed", "short", "long"])
def test_wrong_content_is_refused_and_not_stored(store: Store, wrong: str, size: int) -> None:
    data = random_bytes("w", size)
    given = {"changed": b"?" + data[1:], "short": data[:-1], "long": data + b"?"}[wrong]
    with pytest.raises(DigestMismatch):
        store.put_blob(sha256(data), len(data), chunks_of(given))
    assert store.blob_size(sha256(data)) is None
    assert digests(store) == set()


@pytest.mark.parametrize("good", [10, 40 * MIB])
def test_error_of_the_source_is_passed_on_and_nothing_is_stored(store: Store, good: int) -> None:
    def source() -> Iterator[bytes]:
        yield from chunks_of(bytes(good))
        raise OSError(5, "the source broke")

    with pytest.raises(OSError, match="the source broke"):
        store.put_blob("0" * 64, good + 1, source())
    assert store.blob_size("0" * 64) is None


def test_source_of_a_stored_blob_is_not_read(store: Store) -> None:
    digest = put(store, b"here already")

    def untouched() -> Iterator[bytes]:
        raise AssertionError("read")
        yield b""

    store.put_blob(digest, 12, untouched())


def test_same_blob_can_be_put_by_many_threads(store: Store) -> None:
    data = random_bytes("threads", 2 * MIB)
    with ThreadPoolExecutor(6) as pool:
        assert len(set(pool.map(lambda _: put(store, data), range(12)))) == 1
    assert b"".join(store.read_blob(sha256(data))) == data


def test_missing_blob_has_no_size_and_cannot_be_read(store: Store) -> None:
    assert store.blob_size("1" * 64) is None
    with pytest.raises(StoreError):
        b"".join(store.read_blob("1" * 64))
    store.delete_blob("1" * 64)


def test_deleted_blob_is_gone_and_others_stay(store: Store) -> None:
    first, second = put(store, b"first"), put(store, b"second")
    store.delete_blob(first)
    assert digests(store) == {second}


def test_documents_are_written_replaced_listed_and_deleted(store: Store) -> None:
    assert store.get_document("names/a.json") is None
    assert store.list_documents("names/") == []
    store.put_document("names/b.json", {"n": 1})
    store.put_document("names/a.json", {"n": 2, "ä": "ö"})
    store.put_document("names/a.json", {"n": 3, "ä": "ö"})
    store.put_document("names/deep/x%2Fy.json", {})
    assert store.get_document("names/a.json") == {"n": 3, "ä": "ö"}
    assert store.list_documents("names/") == ["names/a.json", "names/b.json", "names/deep/x%2Fy.json"]
    store.delete_document("names/a.json")
    store.delete_document("names/a.json")
    store.delete_document("names/deep/x%2Fy.json")
    assert store.list_documents("names/") == ["names/b.json"]


def test_presigned_url_serves_the_blob_and_ranges_of_it(store: Store) -> None:
    digest = put(store, b"0123456789")
    url = store.presign(digest, inside=False)
    if url is None:
        path = store.local_path(digest)
        assert path is not None
        assert path.read_bytes() == b"0123456789"
        return
    assert plain_http.get(url).content == b"0123456789"
    part = plain_http.get(url, headers={"Range": "bytes=2-4"})
    assert (part.status_code, part.content) == (206, b"234")


def test_lock_is_exclusive(store: Store) -> None:
    inside = 0

    def hold(_: int) -> int:
        nonlocal inside
        with store.exclusive():
            inside += 1
            seen = inside
            with contextlib.suppress(StoreError):
                store.check()
            inside -= 1
        return seen

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(hold, range(20))) == {1}


def test_blobs_are_listed_with_size_and_age(store: Store) -> None:
    digest = put(store, b"hello")
    (blob,) = store.blobs()
    assert (blob.digest, blob.size) == (digest, 5)
    assert 0 <= blob.age_s < 60


def test_one_of_many_concurrent_creators_succeeds(store: Store) -> None:
    with ThreadPoolExecutor(8) as pool:
        created = list(pool.map(lambda number: store.create_document("leases/x.json", {"holder": number}), range(8)))
    assert sum(created) == 1
    assert store.get_document("leases/x.json") == {"holder": created.index(True)}
    store.delete_document("leases/x.json")
    assert store.create_document("leases/x.json", {"holder": 9})


def test_http_proxy_is_not_used_for_the_store(store_settings: StoreSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    for variable in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(variable, raising=False)
    store = open_store(RegistrySettings(**store_settings))
    with contextlib.closing(store):
        digest = put(store, b"hello")
        assert b"".join(store.read_blob(digest)) == b"hello"
