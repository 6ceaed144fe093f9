"""Folders that cannot be imported as they are: links, caches of Hub clients, what tools leave behind."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import snapshot_download

from tests.registry.bundles import new_library, snapshot
from tests.registry.conftest import Run, Source
from tests.support.hub import contents, digests, small_repo


@pytest.fixture
def refused(registry: Run, tmp_path: Path) -> Callable[[Path], str]:
    """Import a folder, which must fail; return the reason."""

    def run(folder: Path) -> str:
        done = registry("import", "m", str(folder), store=tmp_path / "store")
        assert (done.returncode, new_library(tmp_path / "store").names()) == (78, []), done
        return done.stderr

    return run


def test_link_out_of_the_folder_is_refused(refused: Callable[[Path], str], tmp_path: Path) -> None:
    """X8: no file of this machine gets into the store by a link, through whatever it leads."""
    (tmp_path / "secret").write_text("root:")
    folder = small_repo(tmp_path / "m")
    (folder / "tokenizer.model").symlink_to(tmp_path / "secret")
    assert f"is a link to {tmp_path / 'secret'}, outside of the folder" in refused(folder)
    (folder / "tokenizer.model").unlink()
    (folder / "a").symlink_to(folder / "b")
    (folder / "b").symlink_to("../secret")
    assert "outside of the folder" in refused(folder)
    assert digests(new_library(tmp_path / "store").store) == set()


def test_link_to_a_folder_is_refused(refused: Callable[[Path], str], tmp_path: Path) -> None:
    """X8: its files would be missing without a word."""
    folder = small_repo(tmp_path / "m")
    (folder / "onnx").symlink_to(folder / "1_Pooling")
    assert "is a link to a folder" in refused(folder)


def test_link_within_the_folder_is_followed(registry: Run, tmp_path: Path) -> None:
    folder = small_repo(tmp_path / "m")
    (folder / "same.json").symlink_to("config.json")
    (tmp_path / "link").symlink_to(folder)
    done = registry("import", "m", str(tmp_path / "link"), store=tmp_path / "store")
    assert done.returncode == 0, done.stderr
    assert snapshot(new_library(tmp_path / "store"))["m"] == contents(folder)


def test_device_and_broken_link_are_refused(refused: Callable[[Path], str], tmp_path: Path) -> None:
    folder = small_repo(tmp_path / "m")
    os.mkfifo(folder / "pipe")
    assert "is a broken link or not a file" in refused(folder)
    (folder / "pipe").unlink()
    (folder / "gone").symlink_to("nowhere")
    assert "is a broken link or not a file" in refused(folder)


def test_snapshot_of_a_hub_cache_is_imported(
    source: Source, registry: Run, refused: Callable[[Path], str], tmp_path: Path
) -> None:
    """R4: as huggingface_hub writes it, with links into `blobs`; the folders around it are refused by name."""
    commit = Path(snapshot_download("test/small", endpoint=source.url, cache_dir=tmp_path / "hf"))
    for folder in (tmp_path / "hf", commit.parent.parent, commit.parent):
        assert f"is a Hub client's cache. Import one of its snapshots: {commit}." in refused(folder)
    done = registry("import", "m", str(commit), store=tmp_path / "store")
    assert done.returncode == 0, done.stderr
    assert snapshot(new_library(tmp_path / "store"))["m"] == contents(commit)


def test_incomplete_snapshot_is_refused(source: Source, refused: Callable[[Path], str], tmp_path: Path) -> None:
    """R4: a link whose blob is gone."""
    commit = Path(snapshot_download("test/small", endpoint=source.url, cache_dir=tmp_path / "hf"))
    (commit / "model.safetensors").resolve().unlink()
    assert "model.safetensors is a broken link or not a file" in refused(commit)


def test_what_tools_leave_behind_is_left_out_and_named(registry: Run, tmp_path: Path) -> None:
    """R5: printed, and part of the manifest."""
    folder = small_repo(tmp_path / "m")
    for name in (".git", ".cache", "1_Pooling/__pycache__"):
        (folder / name).mkdir()
        (folder / name / "x").write_text("x")
    (folder / ".DS_Store").write_text("x")
    done = registry("import", "m", str(folder), store=tmp_path / "store")
    assert "left out: .DS_Store (left by a tool, never loaded), .cache (" in done.stdout, done
    (pointer,) = new_library(tmp_path / "store").names()
    left_out = new_library(tmp_path / "store").manifest(pointer.repo, pointer.commit).left_out
    assert [each.path for each in left_out] == [".DS_Store", ".cache", ".git", "1_Pooling/__pycache__"]


def test_refused_file_does_not_stay_in_the_store(refused: Callable[[Path], str], tmp_path: Path) -> None:
    """X8: a pickle that runs code, before the weights are stored."""
    folder = small_repo(tmp_path / "m")
    (folder / "a.pkl").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    assert "a.pkl of local/m runs code when it is loaded" in refused(folder)
    blobs = [path.read_bytes() for path in (tmp_path / "store" / "blobs" / "sha256").iterdir()]
    assert not [blob for blob in blobs if b"system" in blob or len(blob) > 1_000_000]


def test_shard_missing_in_a_folder_is_found_before_anything_is_stored(
    refused: Callable[[Path], str], tmp_path: Path
) -> None:
    folder = small_repo(tmp_path / "m")
    index = {"weight_map": {"w": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    assert "model-00002-of-00002.safetensors, to which model-00001-of-00002.safetensors belongs" in refused(folder)
    assert digests(new_library(tmp_path / "store").store) == set()
