"""Mirroring from a Hub: another registry, with injected faults."""

import asyncio
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from kit.config.catalogue import Catalogue
from kit.net.retry import RetryPolicy
from registry.app import create_registry
from registry.models.library import Library
from registry.open_store import open_store
from registry.settings import RegistrySettings
from registry.store.file_store import FileStore
from registry.store.interface import StoreDown
from tests.registry.conftest import REPO, WEIGHTS, Source, StoreSettings
from tests.support import plain_http
from tests.support.hub import serving, serving_registry, wait_for_job, wait_until


@pytest.fixture
def mirror(source: Source, tmp_path: Path) -> Iterator[str]:
    """A registry that mirrors from the source into a folder."""
    with serving_registry(tmp_path / "mirror", hf_endpoint=source.url) as url:
        yield url


def download(url: str, name: str = "copy", **body: Any) -> httpx2.Response:
    return plain_http.post(f"{url}/models/{name}/download", json={"hf_repo": REPO, **body})


def mirrored_files(folder: Path) -> list[str]:
    return [path.name for path in (folder / "blobs" / "sha256").iterdir()]


def test_registry_mirrors_from_another(source: Source, store_settings: StoreSettings) -> None:
    """Into each kind of store: the same commit, the same digests, and every blob can be verified."""
    settings = dict(store_settings)
    with serving_registry(settings.pop("store"), hf_endpoint=source.url, **settings) as url:
        assert download(url).status_code == 202
        model = wait_for_job(url, "copy")
        assert (model["status"], model["hf_repo"], model["commit"]) == ("ready", REPO, source.manifest.commit)
        expected = [{"path": file.path, "size": file.size, "sha256": file.sha256} for file in source.manifest.files]
        assert model["files"] == expected
        assert model["size_bytes"] == model["progress"]["bytes_done"] == source.manifest.size
        assert plain_http.post(f"{url}/models/copy/verify").status_code == 202
        assert wait_for_job(url, "copy")["status"] == "ready"
    store = open_store(RegistrySettings(**store_settings))
    manifest = Library(store, Catalogue([])).manifest(REPO, "main")
    assert manifest.files == source.manifest.files
    store.close()


@pytest.mark.parametrize("path", [WEIGHTS, "config.json"])
def test_corrupted_file_is_named_and_nothing_published(source: Source, mirror: str, tmp_path: Path, path: str) -> None:
    """One flipped bit in a large or a small file: the job fails and names the file, no model appears."""
    source.switches.corrupt.add(f"/{path}")
    download(mirror)
    model = wait_for_job(mirror, "copy")
    assert model["status"] == "failed"
    assert f"{path} of {REPO} arrived damaged" in model["error"]
    assert not (tmp_path / "mirror" / "names").exists() or not list((tmp_path / "mirror" / "names").iterdir())
    assert plain_http.get(f"{mirror}/api/models/{REPO}").status_code == 404
    source.switches.corrupt.clear()
    download(mirror)
    assert wait_for_job(mirror, "copy")["status"] == "ready"


def test_interrupted_stream_resumes(source: Source, mirror: str) -> None:
    """The second request is for the rest only."""
    source.switches.cut_after[WEIGHTS] = 1_500_000
    source.switches.cuts_left[WEIGHTS] = 1
    download(mirror)
    assert wait_for_job(mirror, "copy")["status"] == "ready"
    ranges = [headers.get("range") for headers in source.switches.requests(f"/{WEIGHTS}")]
    assert ranges == ["bytes=0-2999999", f"bytes={source.switches.cut_after[WEIGHTS]}-2999999"]


@pytest.mark.parametrize(
    ("path", "status", "headers", "says"),
    [
        (f"/{WEIGHTS}", 403, {"X-Error-Code": "GatedRepo"}, "accept its licence at"),
        (REPO + "/revision/main", 401, {"X-Error-Code": "RepoNotFound"}, "does not exist at"),
        (REPO + "/revision/main", 404, {"X-Error-Code": "RevisionNotFound"}, "has no revision 'main'"),
        (f"/{WEIGHTS}", 404, {"X-Error-Code": "EntryNotFound"}, f"{WEIGHTS} of {REPO} is not at"),
    ],
)
def test_refusal_of_the_hub_fails_the_job(
    source: Source, mirror: str, path: str, status: int, headers: dict[str, str], says: str
) -> None:
    """Gated, unknown, removed: at once, with what to do."""
    source.switches.status[path] = (status, headers)
    download(mirror)
    model = wait_for_job(mirror, "copy")
    assert model["status"] == "failed"
    assert says in model["error"]


def test_unreachable_hub_is_reported(tmp_path: Path) -> None:
    """Without internet access: the quick reference's own example ends in a clear error."""
    with serving_registry(tmp_path / "m", hf_endpoint="http://127.0.0.1:9") as url:
        body = {"hf_repo": "meta-llama/Llama-3.2-1B-Instruct"}
        assert plain_http.post(f"{url}/models/my-model/download", json=body).status_code == 202
        model = wait_for_job(url, "my-model")
        assert model["status"] == "failed"
        assert "http://127.0.0.1:9 cannot be reached" in model["error"]
        assert [entry["name"] for entry in plain_http.get(f"{url}/models").json()["models"]] == ["my-model"]


def test_repeated_request_joins_the_job(source: Source, mirror: str) -> None:
    """A different request for the same model is a conflict."""
    gate = source.switches.gate[f"/{WEIGHTS}"] = threading.Event()
    download(mirror)
    wait_until(lambda: source.switches.requests(f"/{WEIGHTS}"))
    assert download(mirror).status_code == 202
    other = download(mirror, allow_patterns=["*.json"])
    assert (other.status_code, other.json()["error"]["code"]) == (409, "job_running")
    gate.set()
    assert wait_for_job(mirror, "copy")["status"] == "ready"
    assert len(source.switches.requests(f"/{WEIGHTS}")) == 1


def test_delete_cancels_the_download(source: Source, mirror: str, tmp_path: Path) -> None:
    """The model never appears, its blobs are removed, and the name is free again."""
    gate = source.switches.gate[f"/{WEIGHTS}"] = threading.Event()
    download(mirror)
    wait_until(lambda: source.switches.requests(f"/{WEIGHTS}"))
    assert plain_http.delete(f"{mirror}/models/copy").json() == {"name": "copy", "deleted": True}
    assert plain_http.get(f"{mirror}/models/copy").status_code == 404
    gate.set()
    wait_until(lambda: mirrored_files(tmp_path / "mirror") == [])
    download(mirror)
    assert wait_for_job(mirror, "copy")["status"] == "ready"


def test_download_resumes_after_a_restart(source: Source, tmp_path: Path) -> None:
    """Stopped in the middle, the registry resumes by itself, without fetching finished files again."""
    gate = source.switches.gate[f"/{WEIGHTS}"] = threading.Event()
    with serving_registry(tmp_path / "mirror", hf_endpoint=source.url) as url:
        download(url)
        wait_until(lambda: len(mirrored_files(tmp_path / "mirror")) == len(source.manifest.files) - 1)
        threading.Timer(0.3, gate.set).start()
    before = len(source.switches.requests("/tokenizer.json"))
    with serving_registry(tmp_path / "mirror", hf_endpoint=source.url) as url:
        wait_until(lambda: plain_http.get(f"{url}/models/copy").status_code == 200)
        assert wait_for_job(url, "copy")["status"] == "ready"
    assert len(source.switches.requests("/tokenizer.json")) == before


@pytest.mark.parametrize(
    "document",
    ['{"status": "queued"}', '{"status": "queued", "request": {"of": "another version"}}', "[]", '{"request": 1}', "{"],
)
def test_unreadable_job_does_not_stop_others(source: Source, tmp_path: Path, document: str) -> None:
    """An unreadable document in `jobs/` becomes a failed job; the next download resumes, and both can be deleted."""
    jobs = tmp_path / "mirror" / "jobs"
    jobs.mkdir(parents=True)
    (jobs / "bad.json").write_text(document)
    request = {"name": "copy", "repo": REPO, "revision": "main"}
    (jobs / "copy.json").write_text(json.dumps({"status": "queued", "request": request}))
    app = create_registry(RegistrySettings(store=f"file:{tmp_path / 'mirror'}", hf_endpoint=source.url))
    with serving(app) as url:
        wait_until(lambda: plain_http.get(f"{url}/models/copy").status_code == 200)
        assert wait_for_job(url, "copy")["status"] == "ready"
        bad = plain_http.get(f"{url}/models/bad").json()
        assert bad["status"] == "failed"
        assert "jobs/bad.json" in bad["error"]
        assert plain_http.delete(f"{url}/models/bad").status_code == 200
    assert not list(jobs.glob("*"))


def test_failure_is_shown_after_a_restart(source: Source, tmp_path: Path) -> None:
    """`failed` and its reason persist; they start nothing."""
    with serving_registry(tmp_path / "mirror", hf_endpoint=source.url) as url:
        plain_http.post(f"{url}/models/x/download", json={"hf_repo": "test/none"})
        failed = wait_for_job(url, "x")
    with serving_registry(tmp_path / "mirror", hf_endpoint=source.url) as url:
        wait_until(lambda: plain_http.get(f"{url}/models/x").status_code == 200)
        assert plain_http.get(f"{url}/models/x").json()["error"] == failed["error"]
        assert plain_http.delete(f"{url}/models/x").status_code == 200
    with serving_registry(tmp_path / "mirror", hf_endpoint=source.url) as url:
        assert plain_http.get(f"{url}/models").json()["models"] == []


def test_patterns_select_files(source: Source, mirror: str) -> None:
    """Skipped files are not fetched."""
    download(mirror, allow_patterns=["*.json"], ignore_patterns=["1_Pooling/"])
    model = wait_for_job(mirror, "copy")
    assert [file["path"] for file in model["files"]] == ["config.json", "tokenizer.json"]
    assert source.switches.requests(f"/{WEIGHTS}") == []
    download(mirror, name="none", allow_patterns=["*.nothing"])
    assert "is left" in wait_for_job(mirror, "none")["error"]


def test_stored_blobs_are_not_fetched_again(source: Source, mirror: str) -> None:
    """A second name of the same model fetches no weights."""
    download(mirror)
    wait_for_job(mirror, "copy")
    download(mirror, name="again")
    assert wait_for_job(mirror, "again")["status"] == "ready"
    assert len(source.switches.requests(f"/{WEIGHTS}")) == 1


def test_catalogue_model_needs_no_body(source: Source, tmp_path: Path) -> None:
    """A name or alias is enough; another repository under that name is refused."""
    catalogue = tmp_path / "models.yaml"
    catalogue.write_text(f"small: {{kind: llm, hf_repo: {REPO}, aliases: [tiny], ignore_patterns: ['*.md']}}\n")
    with serving_registry(tmp_path / "mirror", hf_endpoint=source.url, catalogue=catalogue) as url:
        assert plain_http.get(f"{url}/models").json() == {"models": [], "not_mirrored": ["small"]}
        assert plain_http.post(f"{url}/models/tiny/download").status_code == 202
        model = wait_for_job(url, "small")
        assert "README.md" not in [file["path"] for file in model["files"]]
        assert plain_http.get(f"{url}/models/tiny").json() == model
        assert plain_http.get(f"{url}/api/models/tiny").json()["id"] == REPO
        refused = plain_http.post(f"{url}/models/small/download", json={"hf_repo": "test/other"})
        assert refused.status_code == 400
        unknown = plain_http.post(f"{url}/models/large/download")
        assert (unknown.status_code, unknown.json()["error"]["param"]) == (400, "hf_repo")


def test_token_is_sent_to_the_endpoint_only(source: Source, tmp_path: Path) -> None:
    """HF_TOKEN is sent with every request to HF_ENDPOINT, and is in no file and no response."""
    with serving_registry(tmp_path / "mirror", hf_endpoint=source.url, hf_token="hf_secret") as url:
        download(url)
        shown = wait_for_job(url, "copy")
    assert {headers.get("authorization") for _, _, headers in source.switches.seen} == {"Bearer hf_secret"}
    assert "hf_secret" not in str(shown)
    for path in (tmp_path / "mirror").rglob("*.json"):
        assert "hf_secret" not in path.read_text()


def test_mirroring_from_a_registry_with_keys(tmp_path: Path, source: Source) -> None:
    """A registry with API_KEYS needs HF_TOKEN."""
    with serving_registry(source.store, api_keys="k1,k2") as guarded:
        with serving_registry(tmp_path / "with", hf_endpoint=guarded, hf_token="k2") as url:
            download(url)
            assert wait_for_job(url, "copy")["status"] == "ready"
        with serving_registry(tmp_path / "without", hf_endpoint=guarded) as url:
            download(url)
            assert "HF_TOKEN" in wait_for_job(url, "copy")["error"]


def test_verify_finds_damage_in_the_store(source: Source, mirror: str, tmp_path: Path) -> None:
    """A changed byte on disk: the job fails and names the file, until it is deleted and fetched again."""
    download(mirror)
    model = wait_for_job(mirror, "copy")
    digest = next(file["sha256"] for file in model["files"] if file["path"] == WEIGHTS)
    blob = tmp_path / "mirror" / "blobs" / "sha256" / digest
    blob.chmod(0o600)
    with blob.open("r+b") as file:
        file.write(b"\xff\xfe")
    plain_http.post(f"{mirror}/models/copy/verify")
    broken = wait_for_job(mirror, "copy")
    assert broken["status"] == "failed"
    assert WEIGHTS in broken["error"]
    plain_http.delete(f"{mirror}/models/copy")
    download(mirror)
    wait_for_job(mirror, "copy")
    plain_http.post(f"{mirror}/models/copy/verify")
    assert wait_for_job(mirror, "copy")["status"] == "ready"


async def test_events_follow_a_download(source: Source, mirror: str) -> None:
    """Server-sent events with the model after each change; the stream ends after `ready`."""
    gate = source.switches.gate[f"/{WEIGHTS}"] = threading.Event()
    await asyncio.to_thread(download, mirror)
    names = []
    async with httpx2.AsyncClient() as client, client.stream("GET", f"{mirror}/models/copy/events") as events:
        assert events.headers["content-type"].startswith("text/event-stream")
        async for line in events.aiter_lines():
            if line.startswith("event: "):
                names.append(line.removeprefix("event: "))
                gate.set()
    assert names[0] in ("queued", "downloading")
    assert names[-1] == "ready"


def test_full_disk_is_reported_before_fetching(source: Source, mirror: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sizes are known from the listing."""
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=1000))
    download(mirror)
    model = wait_for_job(mirror, "copy")
    assert model["status"] == "failed"
    assert "has no space left" in model["error"]
    assert source.switches.requests(f"/{WEIGHTS}") == []


def test_download_survives_an_unavailable_store(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever operation fails: documents, sizes, contents."""
    fails: dict[str, int] = {}

    def failing(name: str) -> Callable[..., Any]:
        whole = getattr(FileStore, name)

        def once(self: FileStore, *arguments: Any, **options: Any) -> Any:
            # Not the document that the request writes before the job exists.
            in_job = threading.current_thread().name.startswith("fetch-file" if name == "read_blob" else "job-")
            if in_job and fails.setdefault(name, 0) < 2:
                fails[name] += 1
                raise StoreDown("away")
            return whole(self, *arguments, **options)

        return once

    retries = RetryPolicy(max_attempts=4, initial_backoff_s=0.01)
    with serving_registry(tmp_path / "there", retries=retries, hf_endpoint=source.url) as url:
        for name in ("put_document", "blob_size", "read_blob"):
            monkeypatch.setattr(FileStore, name, failing(name))
        plain_http.post(f"{url}/models/small/download", json={"hf_repo": REPO})
        model = wait_for_job(url, "small")
    assert (model["status"], model.get("error")) == ("ready", None)
    assert fails["put_document"] == fails["blob_size"] == fails["read_blob"] == 2
