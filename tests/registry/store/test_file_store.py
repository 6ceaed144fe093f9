"""What only the store in a folder does."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from registry.store.file_store import ABANDONED_S, FileStore
from registry.store.interface import StoreError


def test_what_a_killed_process_left_is_swept(tmp_path: Path) -> None:
    """Half-written files go when they are old; those of somebody who is writing now stay."""
    FileStore(tmp_path)
    old, fresh = tmp_path / "incoming" / "old", tmp_path / "incoming" / "fresh"
    old.write_bytes(b"x")
    fresh.write_bytes(b"x")
    then = fresh.stat().st_mtime - ABANDONED_S - 1
    os.utime(old, (then, then))
    FileStore(tmp_path)
    assert [path.name for path in (tmp_path / "incoming").iterdir()] == ["fresh"]


def test_a_place_that_cannot_be_a_folder_is_said(tmp_path: Path) -> None:
    """STORE names a file."""
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="Cannot make file:"):
        FileStore(tmp_path / "file" / "store")


def test_blobs_are_read_only_files(tmp_path: Path) -> None:
    """Nobody changes a blob by mistake."""
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
def test_folder_that_is_no_folder_any_more(tmp_path: Path, use: Callable[[FileStore], object]) -> None:
    """What the system refuses is a StoreError that names the place, also for the lock and a look: no internal error."""
    store = FileStore(tmp_path / "store")
    shutil.rmtree(tmp_path / "store")
    (tmp_path / "store").symlink_to("store")  # a link to itself: neither there nor absent
    with pytest.raises(StoreError, match="file:"):
        use(store)
