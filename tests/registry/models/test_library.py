"""Publishing, finding and deleting models."""

import hashlib
from pathlib import Path
from typing import Any

import pytest

from kit.config.catalogue import Catalogue, Entry
from kit.config.hub_names import BadName
from registry.download.folder_import import import_folder
from registry.models.library import BlobsMissing, CommitConflict, Library, RepoUnknown, RevisionUnknown
from registry.models.manifest import FileEntry, Manifest, Source, entry_of
from registry.store.interface import Store
from tests.support.hub import digests, small_repo

SOURCE = Source(kind="hub", place="https://hub.example")
COMMIT, OTHER = "a" * 40, "b" * 40


def stored(store: Store, path: str, data: bytes) -> FileEntry:
    digest = hashlib.sha256(data).hexdigest()
    store.put_blob(digest, len(data), [data])
    return entry_of(path, len(data), digest, "0" * 40)


def publish(library: Library, name: str, files: list[FileEntry], *, repo: str = "o/r", **more: str) -> Manifest:
    options: dict[str, Any] = {"revision": "main", "commit": COMMIT, **more}
    return library.publish(name=name, repo=repo, files=files, source=SOURCE, **options)


def test_model_is_found_by_name_repository_and_revision(library: Library) -> None:
    publish(library, "m", [stored(library.store, "a", b"1")], revision="v1")
    pointer = library.name("m")
    assert pointer is not None
    assert (pointer.repo, pointer.commit, pointer.revision) == ("o/r", COMMIT, "v1")
    assert library.find_repo("m") == library.find_repo("o/r") == "o/r"
    assert library.manifest("o/r", "v1") == library.manifest("o/r", "main") == library.manifest("o/r", COMMIT)
    assert library.refs("o/r") == {"main": COMMIT, "v1": COMMIT}


def test_alias_of_the_catalogue_resolves_to_its_model(store: Store) -> None:
    entry = Entry(name="minilm", kind="embedding", hf_repo="o/r", aliases=("embedding",))
    library = Library(store, Catalogue([entry]))
    publish(library, "minilm", [stored(store, "a", b"1")])
    assert library.find_repo("embedding") == "o/r"
    assert library.canonical("embedding") == library.canonical("o/r") == "minilm"


def test_unknown_repository_and_unknown_revision_are_different_errors(library: Library) -> None:
    publish(library, "m", [stored(library.store, "a", b"1")])
    with pytest.raises(RepoUnknown):
        library.find_repo("o/other")
    with pytest.raises(RevisionUnknown):
        library.manifest("o/r", "v2")
    with pytest.raises(RevisionUnknown):
        library.manifest("o/r", OTHER)


def test_commit_with_missing_blobs_is_not_published(library: Library) -> None:
    here = stored(library.store, "a", b"1")
    missing = entry_of("b", 3, "2" * 64, "0" * 40)
    with pytest.raises(BlobsMissing) as caught:
        publish(library, "m", [here, missing])
    assert caught.value.files == [missing]
    assert library.names() == []
    assert library.store.list_documents("models/") == []


@pytest.mark.parametrize("path", ["../x", "/x", "a//b"])
def test_unsafe_paths_are_not_published(library: Library, path: str) -> None:
    with pytest.raises(BadName):
        publish(library, "m", [stored(library.store, path, b"1")])
    assert library.names() == []


def test_content_of_a_published_commit_cannot_change(library: Library) -> None:
    """Further files of the same commit are added."""
    publish(library, "m", [stored(library.store, "a", b"1")])
    both = publish(library, "m2", [stored(library.store, "b", b"2")])
    assert [file.path for file in both.files] == ["a", "b"]
    with pytest.raises(CommitConflict, match="a different a"):
        publish(library, "m3", [stored(library.store, "a", b"other")])


def test_main_follows_commits_but_not_other_branches(library: Library) -> None:
    publish(library, "m", [stored(library.store, "a", b"1")])
    publish(library, "m-v2", [stored(library.store, "a", b"2")], revision="v2", commit=OTHER)
    assert library.manifest("o/r", "main").commit == COMMIT
    publish(library, "m", [stored(library.store, "a", b"2")], revision=OTHER, commit=OTHER)
    assert library.manifest("o/r", "main").commit == OTHER
    assert library.manifest("o/r", COMMIT).commit == COMMIT


def test_deleting_keeps_blobs_of_other_models(library: Library) -> None:
    shared, own = stored(library.store, "s", b"shared"), stored(library.store, "o", b"own")
    publish(library, "one", [shared, own], repo="o/one")
    publish(library, "two", [shared], repo="o/two", commit=OTHER)
    assert library.delete("one", spare=set)
    assert digests(library.store) == {shared.sha256}
    assert [name.name for name in library.names()] == ["two"]
    assert library.delete("two", spare=set)
    assert digests(library.store) == set()
    assert library.store.list_documents("models/") == library.store.list_documents("names/") == []
    assert not library.delete("two", spare=set)


def test_repository_stays_while_a_name_points_at_it(library: Library) -> None:
    file = stored(library.store, "a", b"1")
    publish(library, "one", [file])
    publish(library, "two", [file])
    assert library.delete("one", spare=set)
    assert library.manifest("o/r", "main").files == (file,)


def test_deleting_keeps_blobs_of_running_downloads(library: Library) -> None:
    file = stored(library.store, "a", b"1")
    publish(library, "m", [file])
    assert library.delete("m", spare=lambda: {file.sha256})
    assert digests(library.store) == {file.sha256}


def test_importing_the_same_folder_gives_the_same_commit(library: Library, tmp_path: Path) -> None:
    first = import_folder(library, small_repo(tmp_path / "a"), name="m", repo="o/r", revision="main")
    blobs = digests(library.store)
    again = import_folder(library, small_repo(tmp_path / "b"), name="m", repo="o/r", revision="main")
    assert (again.commit, again.files) == (first.commit, first.files)
    assert digests(library.store) == blobs
    changed = import_folder(library, small_repo(tmp_path / "c", seed="z"), name="m", repo="o/r", revision="main")
    assert changed.commit != first.commit
