"""Clearing up: what is reached, counted on or young stays; everything else goes."""

import hashlib
import threading
from collections.abc import Iterator

import pytest

from registry.models.library import Library
from registry.models.manifest import Manifest
from registry.store.file_store import FileStore
from registry.store.interface import Blob, Store
from registry.store.lease import CHANGES, LeaseTaken, lease
from registry.upkeep.gc import clear_up
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
    """No job runs in this process."""
    return set()


def test_what_no_model_reaches_goes(library: Library, published: Manifest) -> None:
    """Only looked at first, then removed; models stay as they are."""
    before = snapshot(library)
    garbage = {put(library.store, b"garbage"), put(library.store, b"more garbage")}
    looked = clear_up(library, spare_s=-1, running=nothing, dry_run=True)
    assert (looked.blobs, looked.size_bytes, looked.spared) == (2, 19, 0)
    assert garbage <= digests(library.store)
    assert clear_up(library, spare_s=-1, running=nothing, dry_run=False) == looked
    assert digests(library.store) == {file.sha256 for file in published.files}
    assert snapshot(library) == before
    assert clear_up(library, spare_s=-1, running=nothing, dry_run=False).blobs == 0


def test_what_is_young_or_counted_on_stays(library: Library) -> None:
    """Younger than a URL that is out; counted on by this process, or by a download that `jobs/` keeps."""
    young = put(library.store, b"a")
    cleared = clear_up(library, spare_s=3600, running=nothing, dry_run=False)
    assert (cleared.blobs, cleared.spared) == (0, 1)
    assert cleared.told(dry_run=False) == (
        "removed 0 blobs, 0 B; 1 more may still be in use, and are looked at again another time"
    )
    ours, kept, failed = (put(library.store, data) for data in (b"b", b"c", b"d"))
    library.store.put_document("jobs/x.json", {"status": "queued", "request": {}, "digests": [kept]})
    library.store.put_document("jobs/y.json", {"status": "failed", "request": {}, "digests": [failed]})
    library.store.put_document("jobs/z.json", {"what": "is this"})
    clear_up(library, spare_s=-1, running=lambda: {ours}, dry_run=False)
    assert digests(library.store) == {ours, kept}
    assert young not in digests(library.store)


def test_uploads_that_nobody_goes_on_with_go(library: Library) -> None:
    """After a day; not while a download counts on them."""
    store = library.store
    with begin(store) as upload:
        feed(upload, parts=1)
    for spare_uploads_s, running in ((3600.0, nothing), (-1.0, lambda: {DIGEST})):
        cleared = clear_up(library, spare_s=-1, running=running, dry_run=False, spare_uploads_s=spare_uploads_s)
        assert (cleared.uploads, len(list(store.unfinished()))) == (0, 1)
    for dry_run in (True, False):
        assert len(list(store.unfinished())) == 1
        assert clear_up(library, spare_s=-1, running=nothing, dry_run=dry_run, spare_uploads_s=-1).uploads == 1
    assert list(store.unfinished()) == []


def test_one_at_a_time(library: Library) -> None:
    """While another one clears up, or imports, nothing is touched."""
    digest = put(library.store, b"garbage")
    with lease(library.store, CHANGES, "import"), pytest.raises(LeaseTaken, match=r"gc has to wait: .* import of"):
        clear_up(library, spare_s=-1, running=nothing, dry_run=False)
    assert digests(library.store) == {digest}


def test_what_is_published_meanwhile_stays(
    library: Library, monkeypatch: pytest.MonkeyPatch, published: Manifest
) -> None:
    """It was garbage when it was listed, and is none when it would be removed."""
    library.delete("small", spare=lambda: {file.sha256 for file in published.files})
    listed = library.store.blobs

    def publishing_after() -> Iterator[Blob]:
        yield from listed()
        library.publish(
            name="small", repo=REPO, revision="main", commit=published.commit, files=published.files,
            source=published.source,
        )  # fmt: skip

    monkeypatch.setattr(library.store, "blobs", publishing_after)
    assert clear_up(library, spare_s=-1, running=nothing, dry_run=False).blobs == 0
    assert set(snapshot(library)["small"]) == {file.path for file in published.files}


def test_a_download_of_another_process_is_counted_on(source: Source, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The registry is half way through; a gc from a terminal, which knows nothing of it, leaves what has arrived."""
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
        clear_up(new_library(folder), spare_s=-1, running=nothing, dry_run=False)
        assert here in digests(there)
        assert garbage not in digests(there)
        gate.set()
        assert wait_for_job(url, "small")["status"] == "ready"
    assert there.list_documents("jobs/") == []
