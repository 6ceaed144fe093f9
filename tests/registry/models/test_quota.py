"""A quota: what has no room is refused before a byte of it is fetched."""

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
from tests.support.hub import digests, random_bytes, serving_registry, small_repo, wait_for_job, wait_until


def test_a_download_that_does_not_fit(source: Source, tmp_path: Path) -> None:
    """Told with the numbers and what to do; nothing is fetched. With a larger quota it goes through."""
    with serving_registry(tmp_path / "there", hf_endpoint=source.url, quota_gb=0.002) as url:
        plain_http.post(f"{url}/models/small/download", json={"hf_repo": REPO})
        model = wait_for_job(url, "small")
    assert model["status"] == "failed"
    assert model["error"] == (
        "small needs 3.0 MB more, and of the 2.0 MB of QUOTA_GB 0 B are taken. Delete a model, run `registry gc`, or "
        "raise QUOTA_GB."
    )
    assert source.switches.requests(WEIGHTS) == []
    with serving_registry(tmp_path / "there", hf_endpoint=source.url, quota_gb=0.004) as url:
        plain_http.post(f"{url}/models/small/download", json={"hf_repo": REPO})
        assert wait_for_job(url, "small")["status"] == "ready"
        # What is there already needs no more room.
        plain_http.post(f"{url}/models/again/download", json={"hf_repo": REPO})
        assert wait_for_job(url, "again")["status"] == "ready"


def test_two_downloads_that_fit_only_apart(source: Source, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """The second is refused while the first is on its way; what both have is counted once."""
    other = small_repo(tmp_path / "other")
    (other / WEIGHTS).write_bytes(random_bytes("others", 3_000_000))
    library = Library(FileStore(source.store), new_library(tmp_path / "x").catalogue)
    import_folder(library, other, name="other", repo="test/other", revision="main")
    gate = source.switches.gate[f"{REPO}/resolve/{source.manifest.commit}/{WEIGHTS}"] = threading.Event()
    request.addfinalizer(gate.set)
    with serving_registry(tmp_path / "there", hf_endpoint=source.url, quota_gb=0.005, jobs=3) as url:
        plain_http.post(f"{url}/models/small/download", json={"hf_repo": REPO})
        wait_until(lambda: source.switches.requests(f"{source.manifest.commit}/{WEIGHTS}"))
        plain_http.post(f"{url}/models/again/download", json={"hf_repo": REPO})
        plain_http.post(f"{url}/models/other/download", json={"hf_repo": "test/other"})
        model = wait_for_job(url, "other")
        assert model["status"] == "failed"
        assert "other needs 3.0 MB more, and of the 5.0 MB of QUOTA_GB" in model["error"]
        assert "3.0 MB more go to downloads that run" in model["error"]
        gate.set()
        assert wait_for_job(url, "small")["status"] == wait_for_job(url, "again")["status"] == "ready"


def test_an_import_that_does_not_fit(
    origin: Library, tmp_path: Path, registry: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder and a bundle alike."""
    monkeypatch.setenv("QUOTA_GB", "0.002")
    done = registry("import", "x", str(small_repo(tmp_path / "repo")), store=tmp_path / "there")
    assert (done.returncode, "of the 2.0 MB of QUOTA_GB" in done.stderr) == (78, True), done.stderr
    write(origin, tmp_path / "bundle")
    small = Library(FileStore(tmp_path / "small"), new_library(tmp_path / "x").catalogue, quota=6_000_000)
    with pytest.raises(StoreFull, match=r"the bundle .* needs 6\.0 MB more"):
        import_bundle(small, tmp_path / "bundle", KEY.public, quiet)
    assert digests(small.store) == set()
