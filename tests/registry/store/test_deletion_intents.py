"""A model is published while another process deletes its blobs; S3 has no lock between the two."""

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
def unlocked(library: Library, monkeypatch: pytest.MonkeyPatch) -> Library:
    """A library without its lock: like two processes over one bucket."""
    monkeypatch.setattr(library.store, "exclusive", contextlib.nullcontext)
    return library


def publish(library: Library, manifest: Manifest) -> Manifest:
    return library.publish(
        name="small", repo=REPO, revision="main", commit=manifest.commit, files=manifest.files, source=manifest.source
    )


def nothing() -> set[str]:
    return set()


def test_publication_waits_for_a_deletion_and_finds_blobs_missing(
    unlocked: Library, published: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The intent was written before the publisher looked."""
    files = {file.sha256 for file in published.files}
    unlocked.delete("small", spare=lambda: files)
    looked, go_on = threading.Event(), threading.Event()
    delete = unlocked.store.delete_blob

    def delete_later(digest: str) -> None:
        looked.set()
        assert go_on.wait(10)
        delete(digest)

    monkeypatch.setattr(unlocked.store, "delete_blob", delete_later)
    with ThreadPoolExecutor(2) as pool:
        clearing = pool.submit(gc.collect_garbage, unlocked, min_age_s=-1, running=nothing, dry_run=False)
        assert looked.wait(10)
        publishing = pool.submit(publish, unlocked, published)
        with pytest.raises(TimeoutError):
            publishing.result(0.1)  # it waits for the deletion to end
        go_on.set()
        with pytest.raises(BlobsMissing):
            publishing.result(10)
        assert clearing.result(10).blobs == len(files)
    assert unlocked.names() == []
    assert unlocked.store.list_documents("models/") == []


def test_gc_spares_blobs_published_before_it_looks(
    unlocked: Library, published: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlocked.delete("small", spare=lambda: {file.sha256 for file in published.files})
    announce = deletion_intents.announce_deletion

    @contextlib.contextmanager
    def publishing_first(store: Store, wanted: list[str]) -> Iterator[object]:
        publish(unlocked, published)
        with announce(store, wanted) as good:
            yield good

    monkeypatch.setattr(gc, "announce_deletion", publishing_first)
    assert gc.collect_garbage(unlocked, min_age_s=-1, running=nothing, dry_run=False).blobs == 0
    assert set(snapshot(unlocked)["small"]) == {file.path for file in published.files}
    assert digests(unlocked.store) == {file.sha256 for file in published.files}


def test_expired_or_unreadable_intent_is_ignored(library: Library, published: Manifest) -> None:
    wanted = published.files[0].sha256
    library.store.put_document(f"{deletion_intents.FOLDER}old.json", {"digests": [wanted], "until": 1.0})
    library.store.put_document(f"{deletion_intents.FOLDER}odd.json", {"unknown": "key"})
    publish(library, published)
    assert library.store.list_documents(deletion_intents.FOLDER) == [f"{deletion_intents.FOLDER}odd.json"]
