"""The quota: what does not fit is refused before the first byte is fetched."""

import threading
from pathlib import Path

import pytest

from registry.bundle.importing import import_bundle
from registry.download.folder_import import import_folder
from registry.models.library import Library
from registry.store.file_store import FileStore
from registry.store.interface import StoreFull
from tests.registry.bundles import KEY, new_library, quiet, write
from tests.registry.conftest import REPO, WEIGHTS, Run, Source
from tests.support import plain_http
from tests.support.hub import digests, serving_registry, small_repo, wait_for_job, wait_until
from tests.support.weights import safetensors


def test_download_over_quota_fails_before_fetching(source: Source, tmp_path: Path) -> None:
    """The error has the numbers. With a larger quota it succeeds."""
    with serving_registry(tmp_path / "store", hf_endpoint=source.url, quota_gb=0.002) as url:
        plain_http.post(f"{url}/models/small/download", json={"hf_repo": REPO})
        model = wait_for_job(url, "small")
    assert model["status"] == "failed"
    assert model["error"] == (
        "QUOTA_GB exceeded: small needs 3.0 MB; of 2.0 MB, 0 B are used. Delete a model, run `registry gc`, or raise "
        "QUOTA_GB."
    )
    assert source.switches.requests(WEIGHTS) == []
    with serving_registry(tmp_path / "store", hf_endpoint=source.url, quota_gb=0.004) as url:
        plain_http.post(f"{url}/models/small/download", json={"hf_repo": REPO})
        assert wait_for_job(url, "small")["status"] == "ready"
        # Blobs that are stored already need no space.
        plain_http.post(f"{url}/models/again/download", json={"hf_repo": REPO})
        assert wait_for_job(url, "again")["status"] == "ready"


def test_running_download_reserves_its_space(source: Source, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Files that two downloads share are counted once."""
    other = small_repo(tmp_path / "other")
    (other / WEIGHTS).write_bytes(safetensors("others", 3_000_000))
    library = Library(FileStore(source.store), new_library(tmp_path / "x").catalogue)
    import_folder(library, other, name="other", repo="test/other", revision="main")
    gate = source.switches.gate[f"{REPO}/resolve/{source.manifest.commit}/{WEIGHTS}"] = threading.Event()
    request.addfinalizer(gate.set)
    with serving_registry(tmp_path / "store", hf_endpoint=source.url, quota_gb=0.005, jobs=3) as url:
        plain_http.post(f"{url}/models/small/download", json={"hf_repo": REPO})
        wait_until(lambda: source.switches.requests(f"{source.manifest.commit}/{WEIGHTS}"))
        plain_http.post(f"{url}/models/again/download", json={"hf_repo": REPO})
        plain_http.post(f"{url}/models/other/download", json={"hf_repo": "test/other"})
        model = wait_for_job(url, "other")
        assert model["status"] == "failed"
        assert "other needs 3.0 MB; of 5.0 MB" in model["error"]
        assert "3.0 MB reserved by running downloads" in model["error"]
        gate.set()
        assert wait_for_job(url, "small")["status"] == wait_for_job(url, "again")["status"] == "ready"


def test_import_over_quota_is_refused(
    origin: Library, tmp_path: Path, registry: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a folder and of a bundle."""
    monkeypatch.setenv("QUOTA_GB", "0.002")
    done = registry("import", "x", str(small_repo(tmp_path / "repo")), store=tmp_path / "store")
    assert (done.returncode, "QUOTA_GB exceeded" in done.stderr) == (78, True), done.stderr
    write(origin, tmp_path / "bundle")
    small = Library(FileStore(tmp_path / "small"), new_library(tmp_path / "x").catalogue, quota=6_000_000)
    with pytest.raises(StoreFull, match=r"the bundle .* needs 6\.0 MB"):
        import_bundle(small, tmp_path / "bundle", KEY.public, quiet)
    assert digests(small.store) == set()
