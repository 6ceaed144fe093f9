"""A model is published while another process clears its blobs up: on S3 no lock holds the two apart."""

import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from registry.models.library import BlobsMissing, Library
from registry.models.manifest import Manifest
from registry.store import deletion_intents
from registry.store.interface import Store
from registry.upkeep import gc
from tests.registry.bundles import snapshot
from tests.registry.conftest import REPO
from tests.support.hub import digests


@pytest.fixture
def apart(library: Library, monkeypatch: pytest.MonkeyPatch) -> Library:
    """A library whose lock holds nobody: as two processes over one bucket."""
    monkeypatch.setattr(library.store, "exclusive", contextlib.nullcontext)
    monkeypatch.setattr(deletion_intents, "LOOK_EVERY_S", 0.01)
    return library


def publish(library: Library, manifest: Manifest) -> Manifest:
    return library.publish(
        name="small", repo=REPO, revision="main", commit=manifest.commit, files=manifest.files, source=manifest.source
    )


def nothing() -> set[str]:
    return set()


def test_deleted_after_the_publisher_looked(
    apart: Library, published: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It looked, gc had announced already: it waits, misses the blobs, and nothing of the model is there."""
    files = {file.sha256 for file in published.files}
    apart.delete("small", spare=lambda: files)
    looked, go_on = threading.Event(), threading.Event()
    delete = apart.store.delete_blob

    def delete_later(digest: str) -> None:
        looked.set()
        assert go_on.wait(10)
        delete(digest)

    monkeypatch.setattr(apart.store, "delete_blob", delete_later)
    with ThreadPoolExecutor(2) as pool:
        clearing = pool.submit(gc.collect_garbage, apart, min_age_s=-1, running=nothing, dry_run=False)
        assert looked.wait(10)
        publishing = pool.submit(publish, apart, published)
        with pytest.raises(TimeoutError):
            publishing.result(0.1)  # it waits for the end of the sweep
        go_on.set()
        with pytest.raises(BlobsMissing):
            publishing.result(10)
        assert clearing.result(10).blobs == len(files)
    assert apart.names() == []
    assert apart.store.list_documents("models/") == []


def test_published_before_gc_looks(apart: Library, published: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The manifest is there when gc looks for roots, after it announced: every blob is spared."""
    apart.delete("small", spare=lambda: {file.sha256 for file in published.files})
    announce = deletion_intents.announced

    @contextlib.contextmanager
    def publishing_first(store: Store, wanted: list[str]) -> Iterator[object]:
        publish(apart, published)
        with announce(store, wanted) as good:
            yield good

    monkeypatch.setattr(gc, "announced", publishing_first)
    assert gc.collect_garbage(apart, min_age_s=-1, running=nothing, dry_run=False).blobs == 0
    assert set(snapshot(apart)["small"]) == {file.path for file in published.files}
    assert digests(apart.store) == {file.sha256 for file in published.files}


def test_an_announcement_of_the_dead_holds_nobody_up(library: Library, published: Manifest) -> None:
    """One that ran out is passed over and removed; one that cannot be read is passed over."""
    wanted = published.files[0].sha256
    library.store.put_document(f"{deletion_intents.FOLDER}old.json", {"digests": [wanted], "until": 1.0})
    library.store.put_document(f"{deletion_intents.FOLDER}odd.json", {"what": "is this"})
    publish(library, published)
    assert library.store.list_documents(deletion_intents.FOLDER) == [f"{deletion_intents.FOLDER}odd.json"]
