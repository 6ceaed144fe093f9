"""Behaviour of the store in a folder only."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from registry.store.file_store import ABANDONED_S, FileStore
from registry.store.interface import StoreError


def test_abandoned_temporary_files_are_deleted(tmp_path: Path) -> None:
    """Files written to recently stay."""
    FileStore(tmp_path)
    old, fresh = tmp_path / "incoming" / "old", tmp_path / "incoming" / "fresh"
    old.write_bytes(b"x")
    fresh.write_bytes(b"x")
    then = fresh.stat().st_mtime - ABANDONED_S - 1
    os.utime(old, (then, then))
    FileStore(tmp_path)
    assert [path.name for path in (tmp_path / "incoming").iterdir()] == ["fresh"]


def test_store_path_that_is_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="Cannot create file:"):
        FileStore(tmp_path / "file" / "store")


def test_blobs_are_read_only_files(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    digest = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    store.put_blob(digest, 0, [])
    path = store.local_path(digest)
    assert path is not None
    assert path.stat().st_mode & 0o777 == 0o444


@pytest.mark.parametrize(
    "use",
    [
        lambda store: store.exclusive().__enter__(),
        lambda store: store.blob_size("0" * 64),
        lambda store: store.get_document("names/x.json"),
    ],
    ids=["lock", "look", "read"],
)
def test_os_errors_are_store_errors_that_name_the_folder(tmp_path: Path, use: Callable[[FileStore], object]) -> None:
    store = FileStore(tmp_path / "store")
    shutil.rmtree(tmp_path / "store")
    (tmp_path / "store").symlink_to("store")  # a link to itself: neither there nor absent
    with pytest.raises(StoreError, match="file:"):
        use(store)
