"""Garbage collection: referenced and young blobs stay, others are removed."""

import hashlib
import threading
from collections.abc import Iterator

import pytest

from registry.models.library import Library
from registry.models.manifest import Manifest
from registry.store.file_store import FileStore
from registry.store.interface import Blob, Store
from registry.store.lease import CHANGES, LeaseTaken, lease
from registry.upkeep.gc import collect_garbage
from tests.registry.bundles import new_library, snapshot
from tests.registry.conftest import REPO, WEIGHTS, Source
from tests.registry.store.test_uploads import DIGEST, begin, feed
from tests.support import plain_http
from tests.support.hub import digests, serving_registry, wait_for_job, wait_until


def put(store: Store, data: bytes) -> str:
    digest = hashlib.sha256(data).hexdigest()
    store.put_blob(digest, len(data), [data])
    return digest


def nothing() -> set[str]:
    """Digests referenced by jobs of this process: none."""
    return set()


def test_unreferenced_blobs_are_removed(library: Library, published: Manifest) -> None:
    """A dry run reports the same and removes nothing."""
    before = snapshot(library)
    garbage = {put(library.store, b"garbage"), put(library.store, b"more garbage")}
    dry_run = collect_garbage(library, min_age_s=-1, running=nothing, dry_run=True)
    assert (dry_run.blobs, dry_run.size_bytes, dry_run.spared) == (2, 19, 0)
    assert garbage <= digests(library.store)
    assert collect_garbage(library, min_age_s=-1, running=nothing, dry_run=False) == dry_run
    assert digests(library.store) == {file.sha256 for file in published.files}
    assert snapshot(library) == before
    assert collect_garbage(library, min_age_s=-1, running=nothing, dry_run=False).blobs == 0


def test_young_and_referenced_blobs_stay(library: Library) -> None:
    """References are those of jobs of this process and of unfinished downloads in `jobs/`."""
    young = put(library.store, b"a")
    result = collect_garbage(library, min_age_s=3600, running=nothing, dry_run=False)
    assert (result.blobs, result.spared) == (0, 1)
    assert result.describe(dry_run=False) == "removed 0 blobs, 0 B; 1 more may still be in use and were kept"
    ours, kept, failed = (put(library.store, data) for data in (b"b", b"c", b"d"))
    library.store.put_document("jobs/x.json", {"status": "queued", "request": {}, "digests": [kept]})
    library.store.put_document("jobs/y.json", {"status": "failed", "request": {}, "digests": [failed]})
    library.store.put_document("jobs/z.json", {"what": "is this"})
    collect_garbage(library, min_age_s=-1, running=lambda: {ours}, dry_run=False)
    assert digests(library.store) == {ours, kept}
    assert young not in digests(library.store)


def test_stale_uploads_are_removed(library: Library) -> None:
    """Unless they are young or a download references them."""
    store = library.store
    with begin(store) as upload:
        feed(upload, parts=1)
    for min_upload_age_s, running in ((3600.0, nothing), (-1.0, lambda: {DIGEST})):
        result = collect_garbage(
            library, min_age_s=-1, running=running, dry_run=False, min_upload_age_s=min_upload_age_s
        )
        assert (result.uploads, len(list(store.unfinished()))) == (0, 1)
    for dry_run in (True, False):
        assert len(list(store.unfinished())) == 1
        assert (
            collect_garbage(library, min_age_s=-1, running=nothing, dry_run=dry_run, min_upload_age_s=-1).uploads == 1
        )
    assert list(store.unfinished()) == []


def test_stale_upload_that_a_download_resumes_meanwhile_stays(library: Library) -> None:
    """References are read again for each upload, once its deletion is announced."""
    with begin(library.store) as upload:
        feed(upload, parts=1)
    reads = iter([set[str](), set[str]()])
    result = collect_garbage(
        library, min_age_s=-1, min_upload_age_s=-1, running=lambda: next(reads, {DIGEST}), dry_run=False
    )
    assert result.uploads == 0
    assert [upload.digest for upload in library.store.unfinished()] == [DIGEST]


def test_concurrent_import_prevents_gc(library: Library) -> None:
    digest = put(library.store, b"garbage")
    with lease(library.store, CHANGES, "import"), pytest.raises(LeaseTaken, match=r"gc cannot start: import of"):
        collect_garbage(library, min_age_s=-1, running=nothing, dry_run=False)
    assert digests(library.store) == {digest}


def test_blob_published_meanwhile_stays(library: Library, monkeypatch: pytest.MonkeyPatch, published: Manifest) -> None:
    """It was garbage when listed, and is referenced when it would be removed."""
    library.delete("small", spare=lambda: {file.sha256 for file in published.files})
    listed = library.store.blobs

    def publishing_after() -> Iterator[Blob]:
        yield from listed()
        library.publish(
            name="small", repo=REPO, revision="main", commit=published.commit, files=published.files,
            source=published.source,
        )  # fmt: skip

    monkeypatch.setattr(library.store, "blobs", publishing_after)
    assert collect_garbage(library, min_age_s=-1, running=nothing, dry_run=False).blobs == 0
    assert set(snapshot(library)["small"]) == {file.path for file in published.files}


def test_blobs_of_another_process_download_stay(source: Source, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A gc in this process keeps what the registry's unfinished download has stored."""
    folder = tmp_path_factory.mktemp("mirror")
    gate = source.switches.gate[WEIGHTS] = threading.Event()
    with serving_registry(folder, hf_endpoint=source.url, files_per_job=1) as url:
        plain_http.post(f"{url}/models/small/download", json={"hf_repo": REPO})
        there = FileStore(folder)
        wait_until(lambda: "digests" in (there.get_document("jobs/small.json") or {}))
        weights = source.manifest.file(WEIGHTS)
        assert weights is not None
        here = put(there, b"".join(FileStore(source.store).read_blob(weights.sha256)))
        garbage = put(there, b"garbage")
        collect_garbage(new_library(folder), min_age_s=-1, running=nothing, dry_run=False)
        assert here in digests(there)
        assert garbage not in digests(there)
        gate.set()
        assert wait_for_job(url, "small")["status"] == "ready"
    assert there.list_documents("jobs/") == []
