"""What only the store in a folder does."""

import os
from pathlib import Path

import pytest

from registry.file_store import ABANDONED_S, FileStore
from registry.store import StoreError


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
