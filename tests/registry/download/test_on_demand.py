"""Mirroring on first use: requests for a missing model of the catalogue get its progress, and then the model."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import structlog

from kit.config.catalogue import Catalogue
from kit.model_files.fetch import fetch_model
from kit.model_files.registry_source import NotMirrored
from registry.download import model_download, on_demand
from tests.registry.conftest import REPO, WEIGHTS, Source
from tests.support import plain_http
from tests.support.hub import contents, serving_registry, wait_for_job, wait_until

LISTING = f"/api/models/{REPO}/revision/main"
Serve = Callable[..., Any]


@pytest.fixture
def serve(source: Source, tmp_path: Path) -> Serve:
    """Serve a registry over an empty folder whose catalogue has the source's model as `small`."""
    catalogue = tmp_path / "models.yaml"
    catalogue.write_text(f"small: {{kind: llm, hf_repo: {REPO}, aliases: [tiny]}}\n")
    given: dict[str, Any] = {"hf_endpoint": source.url, "catalogue": catalogue, "mirror_missing": True}
    return lambda **settings: serving_registry(tmp_path / "mirror", **(given | settings))


@pytest.fixture
def mirror(serve: Serve) -> Iterator[str]:
    """The registry of `serve`."""
    with serve() as url:
        yield url


def ask(url: str, method: str = "GET") -> httpx2.Response:
    """Send a request that gets the progress instead of waiting."""
    return plain_http.request(method, url, headers={"Prefer": "respond-async"})


def refusal(answer: httpx2.Response) -> tuple[int, str, str]:
    error = answer.json()["error"]
    return answer.status_code, error["code"], error["message"]


def test_first_request_starts_one_download(source: Source, mirror: str) -> None:
    """All requests get a 503 with the progress until the model is ready."""
    gate = source.switches.gate[f"/{WEIGHTS}"] = threading.Event()
    first = ask(mirror + LISTING)
    assert refusal(first)[:2] == (503, "model_loading")
    assert "small is being mirrored: " in refusal(first)[2]
    assert 1 <= int(first.headers["retry-after"]) <= 15
    wait_until(lambda: source.switches.requests(f"/{WEIGHTS}"))
    for path in (LISTING, f"/api/models/{REPO}", "/api/models/tiny", f"/api/models/{REPO}/tree/main"):
        assert refusal(ask(mirror + path))[:2] == (503, "model_loading")
    head = ask(f"{mirror}/{REPO}/resolve/main/config.json", "HEAD")
    assert head.status_code == 503
    assert head.headers["x-error-message"].startswith("small is being mirrored: 0 % of 3.0 MB")
    assert float(head.headers["x-mirror-progress"]) < 0.01
    assert plain_http.get(f"{mirror}/models/small").json()["status"] == "downloading"
    gate.set()
    assert wait_for_job(mirror, "small")["status"] == "ready"
    assert ask(mirror + LISTING).json()["sha"] == source.manifest.commit
    assert len(source.switches.requests(f"/{WEIGHTS}")) == 1


def test_without_mirror_missing_the_response_is_404(source: Source, serve: Serve) -> None:
    """Nothing is fetched."""
    with serve(mirror_missing=False) as url:
        answer = ask(url + LISTING)
        assert refusal(answer)[:2] == (404, "model_not_found")
        assert answer.headers["x-error-code"] == "RepoNotFound"
    assert source.switches.seen == []


@pytest.mark.parametrize(
    "path", ["/api/models/test/other", f"/api/models/{REPO}/revision/v2", f"/{REPO}/resolve/v2/config.json"]
)
def test_models_outside_the_catalogue_are_not_mirrored(source: Source, mirror: str, path: str) -> None:
    """Nor are other revisions of the catalogue's models."""
    assert ask(mirror + path).status_code == 404
    assert source.switches.seen == []


BROWSER = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 Safari/537.36"
FOREIGN = [
    {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image", "User-Agent": BROWSER},
    {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "no-cors", "User-Agent": BROWSER},  # another port
    {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "User-Agent": BROWSER},  # a link, a frame
    {"sec-fetch-site": "new-value"},
    {"User-Agent": BROWSER},  # the registry at http://192.168.7.9:8090: browsers send no Sec-Fetch-Site there
]
OWN = [
    {},
    {"User-Agent": "python-requests/2.32"},
    {"Sec-Fetch-Site": "none", "User-Agent": BROWSER},  # typed in
    {"Sec-Fetch-Site": "same-origin", "User-Agent": BROWSER},
    {"Sec-Fetch-Site": "cross-site", "Origin": "https://chat.example.org", "User-Agent": BROWSER},  # ALLOWED_ORIGINS
]
READ_PATHS = [
    *(LISTING, f"/api/models/{REPO}", "/api/models/tiny", f"/api/models/{REPO}/tree/main"),
    *(f"/{REPO}/resolve/main/config.json", f"/{REPO}/raw/main/config.json", "/small/resolve/main/config.json"),
]


@pytest.mark.parametrize("headers", FOREIGN)
def test_a_page_of_another_origin_starts_no_download(source: Source, mirror: str, headers: dict[str, str]) -> None:
    """Any page can send a GET (`<img>`, a link, no-cors fetch) without a question, on every route, and HEAD."""
    for path in READ_PATHS:
        for method in ("GET", "HEAD"):
            answer = plain_http.request(method, mirror + path, headers={"Prefer": "respond-async", **headers})
            assert (answer.status_code, answer.headers["x-error-code"]) == (404, "RepoNotFound")
    assert source.switches.seen == []
    assert plain_http.get(f"{mirror}/models").json()["models"] == []


@pytest.mark.parametrize("headers", OWN)
def test_programs_and_admitted_pages_start_a_download(serve: Serve, headers: dict[str, str]) -> None:
    with serve(allowed_origins="https://chat.example.org") as url:
        answer = plain_http.get(url + LISTING, headers={"Prefer": "respond-async", **headers})
        assert refusal(answer)[:2] == (503, "model_loading")
        assert wait_for_job(url, "small")["status"] == "ready"


def test_failure_is_reported_and_retried_after_a_pause(
    source: Source, mirror: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source.switches.status[LISTING] = (401, {})
    ask(mirror + LISTING)
    assert wait_for_job(mirror, "small")["status"] == "failed"
    asked = len(source.switches.seen)
    for _ in range(3):
        answer = ask(mirror + LISTING)
        status, code, message = refusal(answer)
        assert (status, code) == (503, "model_failed")
        assert "small could not be mirrored: test/small does not exist" in message
        assert "HF_TOKEN" in message
        assert "POST /models/small/download" in message
        assert 0 < int(answer.headers["retry-after"]) <= on_demand.RETRY_AFTER_FAILURE_S
    assert len(source.switches.seen) == asked
    source.switches.status.clear()
    monkeypatch.setattr(on_demand, "RETRY_AFTER_FAILURE_S", 0.0)
    assert refusal(ask(mirror + LISTING))[1] == "model_loading"
    assert wait_for_job(mirror, "small")["status"] == "ready"


def test_restart_retries_a_failed_download_at_once(source: Source, serve: Serve) -> None:
    source.switches.status[LISTING] = (401, {})
    with serve() as url:
        ask(url + LISTING)
        wait_for_job(url, "small")
    source.switches.status.clear()
    with serve() as url:
        assert refusal(ask(url + LISTING))[1] == "model_loading"
        assert wait_for_job(url, "small")["status"] == "ready"


def test_download_with_other_options_is_not_disturbed(source: Source, mirror: str) -> None:
    """The response reports it."""
    gate = source.switches.gate[f"/{WEIGHTS}"] = threading.Event()
    plain_http.post(f"{mirror}/models/small/download", json={"ignore_patterns": ["*.md"]})
    status, code, message = refusal(ask(mirror + LISTING))
    assert (status, code) == (503, "model_loading")
    assert "with other options" in message
    gate.set()
    assert wait_for_job(mirror, "small")["status"] == "ready"
    assert ask(mirror + LISTING).status_code == 200


def test_service_gets_progress_and_then_its_files(source: Source, mirror: str, tmp_path: Path) -> None:
    gate = source.switches.gate[f"/{WEIGHTS}"] = threading.Event()
    (entry,) = Catalogue.load(tmp_path / "models.yaml")

    def fetch() -> Path:
        return fetch_model(
            entry, registry_url=mirror, token=None, cache=tmp_path / "cache", report=print, stop=threading.Event()
        )

    with pytest.raises(NotMirrored):
        fetch()
    wait_until(lambda: plain_http.get(f"{mirror}/models/small").json()["progress"]["files_done"] > 0)
    with pytest.raises(NotMirrored, match=r"^small is being mirrored: 0 % of 3\.0 MB") as caught:
        fetch()
    assert caught.value.is_transient
    assert caught.value.retry_after == on_demand.RETRY_AFTER_S
    assert caught.value.progress is not None
    assert 0 <= caught.value.progress < 0.01
    gate.set()
    wait_for_job(mirror, "small")
    assert contents(fetch()) == contents(tmp_path / "repo")


def test_log_has_start_progress_and_end(source: Source, mirror: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests that wait are not logged."""
    monkeypatch.setattr(model_download, "LOG_PROGRESS_EVERY_S", 0.05)
    gate = source.switches.gate[f"/{WEIGHTS}"] = threading.Event()
    all_but_the_weights = f"{len(source.manifest.files) - 1} of {len(source.manifest.files)}"
    with structlog.testing.capture_logs() as logs:
        for _ in range(5):
            ask(mirror + LISTING)
        wait_until(lambda: any(line.get("files") == all_but_the_weights for line in logs))
        gate.set()
        wait_for_job(mirror, "small")
    lines = [line for line in logs if line.get("model") == "small"]
    events = [line["event"] for line in lines]
    assert events[:2] == ["mirroring on first use", "job started"]
    assert events[-1] == "job ended"
    assert (lines[1]["repo"], lines[1]["revision"]) == (REPO, "main")
    halfway = next(line for line in lines if line["event"] == "downloading" and line["files"] == all_but_the_weights)
    assert halfway["progress"].startswith("0 % of 3.0 MB")
    assert (lines[-1]["status"], lines[-1]["progress"].partition(",")[0]) == ("ready", "100 % of 3.0 MB")
    assert [line for line in logs if line["event"] == "request" and line["status"] == 503] == []
