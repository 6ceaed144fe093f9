"""A model requested while it is being mirrored is served file by file, each once its digest is verified."""

import threading
import types
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import HfHubHTTPError

from kit.config.catalogue import Catalogue
from kit.net.retry import RetryPolicy
from registry.api.long_wait import HoldTimes
from registry.download import on_demand
from registry.download.folder_import import import_folder
from registry.models.library import Library
from registry.store.file_store import FileStore
from registry.store.part_size import MIN_PART
from tests.registry.conftest import REPO, WEIGHTS, Source, StoreSettings
from tests.registry.safety.test_policy import ANYTHING, EVIL, HARMLESS
from tests.support import plain_http
from tests.support.hub import (
    Switches,
    contents,
    serving_registry,
    small_repo,
    wait_for_job,
    wait_until,
)
from tests.support.programs.registry_process import RegistryProcess
from tests.support.weights import safetensors

SIZE = 2 * MIN_PART + 5000
PARTS = 3
FILE = f"/{REPO}/resolve/main/{WEIGHTS}"
CONTENT = safetensors("a", SIZE)


@pytest.fixture
def big(tmp_path: Path) -> Iterator[Source]:
    """A source whose weights have three parts; `gate` holds back all but the first."""
    store, switches = tmp_path / "hub", Switches()
    library = Library(FileStore(store), Catalogue([]))
    folder = small_repo(tmp_path / "repo", weights=SIZE)
    manifest = import_folder(library, folder, name="small", repo=REPO, revision="main")
    switches.gate[f"/{WEIGHTS}"], switches.gate_from[f"/{WEIGHTS}"] = threading.Event(), MIN_PART
    with serving_registry(store, switches=switches) as url:
        yield Source(url, switches, manifest, store)


@pytest.fixture
def catalogue(tmp_path: Path) -> Path:
    path = tmp_path / "models.yaml"
    path.write_text(f"small: {{kind: llm, hf_repo: {REPO}}}\n")
    return path


@pytest.fixture
def times() -> HoldTimes:
    """The registry's hold times, which a test may change."""
    return HoldTimes()


@pytest.fixture
def mirror(big: Source, catalogue: Path, tmp_path: Path, times: HoldTimes) -> Iterator[str]:
    """A registry over an empty folder whose catalogue has the source's model as `small`."""
    settings: dict[str, Any] = {"hf_endpoint": big.url, "catalogue": catalogue, "mirror_missing": True}
    with serving_registry(tmp_path / "mirror", hold_times=times, **settings) as url:
        yield url
        open_gate(big)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as threads:
        yield threads


def open_gate(source: Source) -> None:
    source.switches.gate[f"/{WEIGHTS}"].set()


def wait_for_weights(source: Source) -> None:
    """Wait until the source has sent the first part of the weights and holds back the others."""
    wait_until(lambda: len(source.switches.requests(f"/{WEIGHTS}")) == PARTS)


def files_done(url: str) -> int:
    return int(plain_http.get(f"{url}/models/small").json().get("progress", {}).get("files_done", 0))


def message(response: httpx2.Response) -> str:
    return str(response.json()["error"]["message"])


def test_request_for_file_in_download_gets_it_whole_once_verified(
    big: Source, mirror: str, pool: ThreadPoolExecutor
) -> None:
    wait_until(lambda: plain_http.head(mirror + FILE).status_code == 200)
    request = pool.submit(plain_http.get, mirror + FILE)
    wait_for_weights(big)
    assert not request.done()
    assert plain_http.get(f"{mirror}/models/small").json()["status"] == "downloading"
    assert plain_http.get(f"{mirror}/api/models").json() == []
    open_gate(big)
    response = request.result()
    assert (response.status_code, response.content) == (200, CONTENT)
    assert response.headers["etag"] == f'"{next(f for f in big.manifest.files if f.path == WEIGHTS).etag}"'
    assert response.headers["x-repo-commit"] == big.manifest.commit
    assert wait_for_job(mirror, "small")["status"] == "ready"
    assert len(big.switches.requests(f"/{WEIGHTS}")) == PARTS


def test_verified_files_are_served_before_the_rest(big: Source, mirror: str, tmp_path: Path) -> None:
    found = hf_hub_download(REPO, "config.json", endpoint=mirror, cache_dir=tmp_path / "client")
    assert Path(found).read_bytes() == contents(tmp_path / "repo")["config.json"]
    tree = plain_http.get(f"{mirror}/api/models/{REPO}/tree/{big.manifest.commit}?recursive=true").json()
    assert {entry["path"] for entry in tree if entry["type"] == "file"} == {file.path for file in big.manifest.files}
    head = plain_http.head(mirror + FILE)
    assert (head.status_code, head.headers["x-linked-size"]) == (200, str(SIZE))
    none = plain_http.get(f"{mirror}/{REPO}/resolve/main/none")
    assert (none.status_code, none.headers["x-error-code"]) == (404, "EntryNotFound")
    other = plain_http.get(f"{mirror}/{REPO}/resolve/{'0' * 40}/config.json")
    assert (other.status_code, other.headers["x-error-code"]) == (404, "RepoNotFound")
    assert not big.switches.gate[f"/{WEIGHTS}"].is_set()


def test_four_clients_get_every_file_and_the_source_sends_it_once(
    big: Source, mirror: str, pool: ThreadPoolExecutor, tmp_path: Path
) -> None:
    clients = [pool.submit(snapshot_download, REPO, endpoint=mirror, local_dir=tmp_path / f"c{n}") for n in range(4)]
    wait_for_weights(big)
    open_gate(big)
    for number, client in enumerate(clients):
        client.result()
        assert (tmp_path / f"c{number}" / WEIGHTS).read_bytes() == CONTENT
    assert len(big.switches.requests(f"/{WEIGHTS}")) == PARTS


def test_hub_client_retries_a_file_that_takes_long(
    big: Source, mirror: str, tmp_path: Path, times: HoldTimes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It gets 429 with Retry-After, as it does not retry a 503."""
    times.hold_s = 0.0
    monkeypatch.setattr(on_demand, "UNKNOWN_FILE_WAIT_S", 77.0)
    monkeypatch.setattr(on_demand, "MIN_FILE_WAIT_S", 77.0)
    waits = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        open_gate(big)
        wait_for_job(mirror, "small")

    wait_until(lambda: plain_http.head(mirror + FILE).status_code == 200)
    assert plain_http.get(mirror + FILE).status_code == 429
    monkeypatch.setattr("huggingface_hub.utils._http.time", types.SimpleNamespace(sleep=sleep))
    found = hf_hub_download(REPO, WEIGHTS, endpoint=mirror, cache_dir=tmp_path / "client")
    assert Path(found).read_bytes() == CONTENT
    assert len(waits) == 1
    assert 77.0 <= waits[0] <= on_demand.MAX_FILE_WAIT_S + 1


def test_range_is_served_once_the_file_is_verified(big: Source, mirror: str, pool: ThreadPoolExecutor) -> None:
    request = pool.submit(plain_http.get, mirror + FILE, headers={"Range": "bytes=0-99"})
    wait_for_weights(big)
    assert not request.done()
    open_gate(big)
    response = request.result()
    assert (response.status_code, response.content) == (206, CONTENT[:100])


@pytest.mark.parametrize("bytes_range", [None, "bytes=0-99", "bytes=1000-"])
def test_no_byte_of_a_wrong_file_is_served(
    bytes_range: str | None, big: Source, mirror: str, pool: ThreadPoolExecutor
) -> None:
    """The error names the file, under the branch and under the commit."""
    big.switches.corrupt.add(WEIGHTS)
    headers = {"Range": bytes_range} if bytes_range else {}
    wait_until(lambda: plain_http.head(mirror + FILE).status_code == 200)
    paths = (FILE, FILE.replace("main", big.manifest.commit))
    requests = [pool.submit(plain_http.get, mirror + path, headers=headers) for path in paths]
    wait_for_weights(big)
    open_gate(big)
    assert wait_for_job(mirror, "small")["status"] == "failed"
    responses = [request.result() for request in requests]
    responses += [plain_http.get(mirror + path, headers=headers) for path in paths]
    for response in responses:
        assert response.status_code == 503
        assert f"{WEIGHTS} of {REPO} arrived damaged" in message(response)


def test_hub_client_shows_why_a_file_was_refused(big: Source, mirror: str, tmp_path: Path) -> None:
    big.switches.corrupt.add(WEIGHTS)
    open_gate(big)
    with pytest.raises(HfHubHTTPError, match=f"{WEIGHTS} of {REPO} arrived damaged"):
        snapshot_download(REPO, endpoint=mirror, local_dir=tmp_path / "client")
    assert not (tmp_path / "client" / WEIGHTS).exists()


def test_hub_client_gets_the_right_file_after_one_corrupt_fetch(big: Source, mirror: str, tmp_path: Path) -> None:
    big.switches.corrupt_times[WEIGHTS] = PARTS
    open_gate(big)
    snapshot_download(REPO, endpoint=mirror, local_dir=tmp_path / "client")
    assert (tmp_path / "client" / WEIGHTS).read_bytes() == CONTENT


def test_failed_source_is_reported_and_the_next_download_resumes(
    big: Source, catalogue: Path, tmp_path: Path, pool: ThreadPoolExecutor
) -> None:
    retries = RetryPolicy(max_attempts=2, initial_backoff_s=0.01)
    settings: dict[str, Any] = {"hf_endpoint": big.url, "catalogue": catalogue, "mirror_missing": True}
    with serving_registry(tmp_path / "mirror", retries=retries, **settings) as url:
        request = pool.submit(plain_http.get, url + FILE)
        wait_until(lambda: any(path.stat().st_size for path in (tmp_path / "mirror").glob("uploads/*.part")))
        big.switches.dead = True
        response = request.result()
        assert response.status_code == 503
        assert WEIGHTS in message(response)
        big.switches.dead = False
        open_gate(big)
        plain_http.post(f"{url}/models/small/download")
        assert plain_http.get(url + FILE).content == CONTENT
    assert len([each for each in big.switches.requests(f"/{WEIGHTS}") if each["range"].startswith("bytes=0-")]) == 1


def test_download_continues_when_the_client_leaves(big: Source, mirror: str) -> None:
    wait_until(lambda: plain_http.head(mirror + FILE).status_code == 200)
    with pytest.raises(httpx2.ReadTimeout):
        plain_http.get(mirror + FILE, timeout=0.05)
    open_gate(big)
    assert wait_for_job(mirror, "small")["status"] == "ready"


def test_hub_client_gets_the_file_after_kill_9_of_the_registry(
    big: Source, catalogue: Path, tmp_path: Path, pool: ThreadPoolExecutor
) -> None:
    """The mirror resumes by itself. A client that was waiting for a response fails, as huggingface_hub retries none."""
    registry = RegistryProcess(tmp_path / "mirror", hf_endpoint=big.url, catalogue=catalogue)
    registry.environment["MIRROR_MISSING"] = "yes"

    def download() -> str:
        return hf_hub_download(REPO, WEIGHTS, endpoint=registry.url, local_dir=tmp_path / "client")

    with registry:
        interrupted = pool.submit(download)
        wait_until(lambda: list((tmp_path / "client").rglob("*.incomplete")))
        registry.kill()
        open_gate(big)
        registry.start()
        interrupted.exception(60)
        assert Path(download()).read_bytes() == CONTENT


@pytest.mark.parametrize(("content", "status"), [(EVIL, 503), (HARMLESS, 200)], ids=["evil", "harmless"])
def test_pickle_is_served_only_after_its_scan(
    content: bytes, status: int, catalogue: Path, tmp_path: Path, pool: ThreadPoolExecutor
) -> None:
    """The model is not announced before; a refusal names the file."""
    folder, switches = small_repo(tmp_path / "repo"), Switches()
    (folder / WEIGHTS).unlink()
    (folder / "pytorch_model.bin").write_bytes(content)
    library = Library(FileStore(tmp_path / "hub"), Catalogue([]))
    import_folder(library, folder, name="s", repo=REPO, revision="main", policy=ANYTHING)
    gate = switches.gate["/pytorch_model.bin"] = threading.Event()
    with (
        serving_registry(tmp_path / "hub", switches=switches) as hub,
        serving_registry(tmp_path / "mirror", hf_endpoint=hub, catalogue=catalogue, mirror_missing=True) as url,
    ):
        asked = pool.submit(plain_http.get, f"{url}/{REPO}/resolve/main/pytorch_model.bin")
        wait_until(lambda: files_done(url) == 5)
        assert not asked.done()
        gate.set()
        answer = asked.result()
    assert answer.status_code == status
    if status == 200:
        assert answer.content == content
    else:
        assert "pytorch_model.bin" in message(answer)


def test_no_byte_of_an_unsafe_pickle_is_served_under_a_harmless_name(catalogue: Path, tmp_path: Path) -> None:
    folder = small_repo(tmp_path / "repo")
    (folder / "weights").write_bytes(EVIL + bytes(2 * MIN_PART))
    library = Library(FileStore(tmp_path / "hub"), Catalogue([]))
    import_folder(library, folder, name="s", repo=REPO, revision="main", policy=ANYTHING)
    with (
        serving_registry(tmp_path / "hub") as hub,
        serving_registry(tmp_path / "mirror", hf_endpoint=hub, catalogue=catalogue, mirror_missing=True) as url,
    ):
        response = plain_http.get(f"{url}/{REPO}/resolve/main/weights")
        assert response.status_code == 503
        assert "weights of" in message(response)


def test_previous_commit_is_served_until_the_new_one_is_published(
    big: Source, mirror: str, tmp_path: Path, pool: ThreadPoolExecutor
) -> None:
    """By its own id the new commit is served file by file."""
    open_gate(big)
    assert plain_http.get(mirror + FILE).content == CONTENT
    assert wait_for_job(mirror, "small")["status"] == "ready"
    folder = small_repo(tmp_path / "new", seed="b", weights=SIZE)
    new = import_folder(Library(FileStore(big.store), Catalogue([])), folder, name="small", repo=REPO, revision="main")
    gate = big.switches.gate[f"/{WEIGHTS}"] = threading.Event()
    plain_http.post(f"{mirror}/models/small/download")
    wait_until(lambda: len(big.switches.requests(f"/{WEIGHTS}")) > PARTS)
    assert plain_http.get(mirror + FILE).content == CONTENT
    request = pool.submit(plain_http.get, mirror + FILE.replace("main", new.commit))
    assert plain_http.head(mirror + FILE).headers["x-repo-commit"] == big.manifest.commit
    assert not request.done()
    gate.set()
    assert request.result().content == safetensors("b", SIZE)
    assert wait_for_job(mirror, "small")["status"] == "ready"
    assert plain_http.head(mirror + FILE).headers["x-repo-commit"] == new.commit


def test_registry_mirrors_from_a_registry_that_is_still_mirroring(big: Source, mirror: str, tmp_path: Path) -> None:
    """It waits for the complete model (`Prefer: wait`)."""
    with serving_registry(tmp_path / "edge", hf_endpoint=mirror) as edge:
        plain_http.post(f"{edge}/models/small/download", json={"hf_repo": REPO})
        wait_until(lambda: files_done(mirror) == 5)
        open_gate(big)
        assert wait_for_job(edge, "small")["status"] == "ready"
        assert plain_http.get(edge + FILE).content == CONTENT


def test_files_are_served_from_every_store_once_verified(
    big: Source, catalogue: Path, store_settings: StoreSettings, pool: ThreadPoolExecutor
) -> None:
    settings = {**store_settings, "hf_endpoint": big.url, "catalogue": catalogue, "mirror_missing": True}
    with serving_registry(settings.pop("store"), **settings) as url:
        wait_until(lambda: plain_http.head(url + FILE).status_code == 200)
        request = pool.submit(plain_http.get, url + FILE, follow_redirects=True)
        wait_for_weights(big)
        assert not request.done()
        open_gate(big)
        assert request.result().content == CONTENT
        assert wait_for_job(url, "small")["status"] == "ready"
    assert len(big.switches.requests(f"/{WEIGHTS}")) == PARTS
