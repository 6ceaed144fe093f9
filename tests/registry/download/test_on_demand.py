"""Mirroring on first use: who asks for a model of the catalogue that is not here hears how far it is, then gets it."""

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
    """That registry."""
    with serve() as url:
        yield url


def ask(url: str, method: str = "GET") -> httpx2.Response:
    """Ask as who would rather hear how far it is than wait."""
    return plain_http.request(method, url, headers={"Prefer": "respond-async"})


def refusal(answer: httpx2.Response) -> tuple[int, str, str]:
    error = answer.json()["error"]
    return answer.status_code, error["code"], error["message"]


def test_the_first_question_begins_one_download(source: Source, mirror: str) -> None:
    """However often and however it is asked for: one download, 503 with its progress, and then the model."""
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


def test_off_it_is_the_404_as_ever(source: Source, serve: Serve) -> None:
    """The default: nothing is fetched because somebody asked."""
    with serve(mirror_missing=False) as url:
        answer = ask(url + LISTING)
        assert refusal(answer)[:2] == (404, "model_not_found")
        assert answer.headers["x-error-code"] == "RepoNotFound"
    assert source.switches.seen == []


@pytest.mark.parametrize(
    "path", ["/api/models/test/other", f"/api/models/{REPO}/revision/v2", f"/{REPO}/resolve/v2/config.json"]
)
def test_only_what_the_catalogue_has(source: Source, mirror: str, path: str) -> None:
    """Another repository, or another revision of a known one, is nobody's to fetch."""
    assert ask(mirror + path).status_code == 404
    assert source.switches.seen == []


def test_a_failure_is_told_and_not_repeated_on_every_question(
    source: Source, mirror: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong token knocks once; the reason is told until the pause is over, then it is tried again."""
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


def test_a_restart_is_another_chance(source: Source, serve: Serve) -> None:
    """Whoever has mended the token starts the registry again, and does not wait for the pause."""
    source.switches.status[LISTING] = (401, {})
    with serve() as url:
        ask(url + LISTING)
        wait_for_job(url, "small")
    source.switches.status.clear()
    with serve() as url:
        assert refusal(ask(url + LISTING))[1] == "model_loading"
        assert wait_for_job(url, "small")["status"] == "ready"


def test_another_job_on_the_model_is_waited_for(source: Source, mirror: str) -> None:
    """Somebody downloads it with other options: the asker is told, and that download is left alone."""
    gate = source.switches.gate[f"/{WEIGHTS}"] = threading.Event()
    plain_http.post(f"{mirror}/models/small/download", json={"ignore_patterns": ["*.md"]})
    status, code, message = refusal(ask(mirror + LISTING))
    assert (status, code) == (503, "model_loading")
    assert "with other options" in message
    gate.set()
    assert wait_for_job(mirror, "small")["status"] == "ready"
    assert ask(mirror + LISTING).status_code == 200


def test_a_service_hears_how_far_it_is_and_then_loads(source: Source, mirror: str, tmp_path: Path) -> None:
    """The whole way: the service's fetch is told the progress in words and as a number; in the end it has the files."""
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


def test_the_log_can_be_followed(source: Source, mirror: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Begin, now and then how far, end; not a line for each question of those who wait."""
    monkeypatch.setattr(model_download, "LOG_PROGRESS_EVERY_S", 0.05)
    gate = source.switches.gate[f"/{WEIGHTS}"] = threading.Event()
    all_but_the_weights = f"{len(source.manifest.files) - 1} of {len(source.manifest.files)}"
    with structlog.testing.capture_logs() as logs:
        for _ in range(5):
            ask(mirror + LISTING)
        wait_until(lambda: any(line.get("files") == all_but_the_weights for line in logs))
        gate.set()
        wait_for_job(mirror, "small")
    told = [line for line in logs if line.get("model") == "small"]
    events = [line["event"] for line in told]
    assert events[:2] == ["mirroring on first use", "job begins"]
    assert events[-1] == "job ended"
    assert (told[1]["repo"], told[1]["revision"]) == (REPO, "main")
    halfway = next(line for line in told if line["event"] == "downloading" and line["files"] == all_but_the_weights)
    assert halfway["progress"].startswith("0 % of 3.0 MB")
    assert (told[-1]["status"], told[-1]["progress"].partition(",")[0]) == ("ready", "100 % of 3.0 MB")
    assert [line for line in logs if line["event"] == "request" and line["status"] == 503] == []
