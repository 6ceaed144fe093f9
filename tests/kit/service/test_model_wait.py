"""A service that waits for a model which its registry is mirroring: what /health shows, and what the log says."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import structlog
from fastapi import FastAPI

from kit.config.catalogue import Entry
from kit.errors import ApiError, ModelLoading, NotFound
from kit.model_files.fetch import ModelFilesError
from kit.service import model_wait
from kit.service.load_state import Loading
from kit.service.model_wait import FETCH_SHARE, MIRROR_SHARE, Fetching
from tests.kit.served import bare_app, serve

COMMIT = "0123456789abcdef0123456789abcdef01234567"
HANG_S = 20


class Registry:
    """A registry's listing that answers with the next of `answers`, the last one for ever; `ready` is a listing."""

    def __init__(self, *answers: ApiError | str) -> None:
        self.answers = list(answers)
        self.asked = 0
        self.app: FastAPI = bare_app()
        self.app.add_api_route("/api/models/org/tiny/revision/main", self._listing)
        self.app.add_api_route(f"/org/tiny/resolve/{COMMIT}/config.json", self._file)

    async def _listing(self) -> dict[str, Any]:
        self.asked += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, ApiError):
            raise answer
        sha1 = "9e26dfeeb6e641a33dae4961196235bdb965b21b"  # git's id of `{}`
        return {"sha": COMMIT, "siblings": [{"rfilename": "config.json", "size": 2, "blobId": sha1}]}

    async def _file(self) -> dict[str, Any]:
        return {}


class Recorded(Loading):
    """Keeps what was reported."""

    def __init__(self) -> None:
        super().__init__("tiny")
        self.reports: list[tuple[float, str]] = []

    def report(self, progress: float, detail: str) -> None:
        self.reports.append((progress, detail))
        super().report(progress, detail)


def mirroring(percent: int) -> ModelLoading:
    error = ModelLoading(f"tiny is being mirrored: {percent} % of 9.0 MB, 1.0 MB/s, 6 s left")
    error.headers |= {"X-Mirror-Progress": str(percent / 100), "Retry-After": "0"}
    return error


def failed() -> ApiError:
    return ApiError("tiny could not be mirrored: no token.", status=503, code="model_failed")


Fetch = Callable[..., contextlib.AbstractAsyncContextManager[Recorded]]


@pytest.fixture
def fetch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fetch:
    """Fetch from a registry until there is a folder, or an error; gives what was reported."""
    monkeypatch.setattr(model_wait, "RETRY_FIRST_S", 0.01)
    monkeypatch.setattr(model_wait, "RETRY_MOST_S", 0.01)
    entry = Entry.model_validate({"name": "tiny", "kind": "llm", "hf_repo": "org/tiny"})

    @contextlib.asynccontextmanager
    async def run(registry: Registry) -> AsyncIterator[Recorded]:
        loading = Recorded()
        with serve(registry.app) as (host, port):
            url = f"http://{host}:{port}"
            fetch = Fetching(entry, loading, threading.Event(), registry_url=url, token=None, cache=tmp_path / "cache")
            async with asyncio.timeout(HANG_S):
                folder = await fetch.folder()
        assert (folder / "config.json").read_bytes() == b"{}"
        yield loading

    return run


async def test_health_follows_the_mirror(fetch: Fetch) -> None:
    """Its words as the detail, its progress as the first half of fetching; never backwards."""
    async with fetch(Registry(mirroring(0), mirroring(35), mirroring(80), "ready")) as loading:
        waits = [report for report in loading.reports if report[1].startswith("waiting: ")]
        share, detail = waits[1]
        assert share == pytest.approx(0.35 * MIRROR_SHARE)
        assert detail == "waiting: tiny is being mirrored: 35 % of 9.0 MB, 1.0 MB/s, 6 s left"
        shares = [share for share, _ in loading.reports]
        assert shares == sorted(shares)
        assert shares[-1] == FETCH_SHARE


async def test_a_failed_mirror_is_waited_for(fetch: Fetch) -> None:
    """The reason is shown and logged once; it may be mended while the service waits."""
    with structlog.testing.capture_logs() as logs:
        async with fetch(Registry(failed(), failed(), failed(), "ready")) as loading:
            assert (0.0, "waiting: tiny could not be mirrored: no token.") in loading.reports
    told = [line for line in logs if line["event"] == "model files not there yet"]
    assert [line["reason"] for line in told] == ["tiny could not be mirrored: no token."]


async def test_progress_is_logged_now_and_then(fetch: Fetch) -> None:
    """Each answer says something new; the log does not repeat them all."""
    with structlog.testing.capture_logs() as logs:
        async with fetch(Registry(*(mirroring(percent) for percent in range(20)), "ready")):
            pass
    assert len([line for line in logs if line["event"] == "waiting for the registry"]) == 1


@pytest.mark.parametrize("code", ["store_failed", None])
async def test_another_503_is_a_registry_in_trouble(fetch: Fetch, code: str | None) -> None:
    """What it says is shown with it."""
    trouble = ApiError("The bucket is gone.", status=503, code=code)
    async with fetch(Registry(trouble, "ready")) as loading:
        (wait,) = [detail for _, detail in loading.reports if detail.startswith("waiting: ")]
    assert "answered 503 for the list of files: The bucket is gone." in wait


async def test_files_from_before_are_better_than_waiting(fetch: Fetch) -> None:
    """A registry that lost the model is no reason to stand still."""
    async with fetch(Registry("ready")):
        pass
    async with fetch(Registry(mirroring(1))) as loading:
        assert loading.reports[-1][1] == "files from before"


async def test_without_mirroring_it_names_the_script(fetch: Fetch) -> None:
    """In the air gap: what to do, in /health and in the log."""
    with structlog.testing.capture_logs() as logs:
        async with fetch(Registry(NotFound("No such model."), "ready")) as loading:
            assert any(
                detail.startswith("waiting: ") and "scripts/offline-setup.sh" in detail for _, detail in loading.reports
            )
    assert any("scripts/offline-setup.sh" in line.get("reason", "") for line in logs)


async def test_what_cannot_pass_ends_the_wait(fetch: Fetch) -> None:
    """A refused token stays refused."""
    with pytest.raises(ModelFilesError, match="REGISTRY_TOKEN"):
        async with fetch(Registry(ApiError("no", status=401))):
            pass
