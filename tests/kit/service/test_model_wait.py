"""A service that waits for a model that its registry is mirroring: /health and the log."""

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
from kit.model_files.fetch import ModelFilesError, Report, fetch_model
from kit.net.retry import RetryPolicy
from kit.service.load_state import Loading
from kit.service.model_wait import FETCH_SHARE, MIRROR_SHARE, ModelWait
from tests.kit.served import bare_app, serve

COMMIT = "0123456789abcdef0123456789abcdef01234567"
HANG_S = 20


class Registry:
    """A registry that responds with the next of `answers`, then always with the last one; `ready` is a listing."""

    def __init__(self, *answers: ApiError | str) -> None:
        self.answers = list(answers)
        self.app: FastAPI = bare_app()
        self.app.add_api_route("/api/models/org/tiny/revision/main", self._listing)
        self.app.add_api_route(f"/org/tiny/resolve/{COMMIT}/config.json", self._file)

    async def _listing(self) -> dict[str, Any]:
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, ApiError):
            raise answer
        sha1 = "9e26dfeeb6e641a33dae4961196235bdb965b21b"  # git's id of `{}`
        return {"sha": COMMIT, "siblings": [{"rfilename": "config.json", "size": 2, "blobId": sha1}]}

    async def _file(self) -> dict[str, Any]:
        return {}


class Recorded(Loading):
    """Records the reports."""

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
def fetch(tmp_path: Path) -> Fetch:
    """Fetch from a registry until there is a folder or an error; give the reports."""
    retries = RetryPolicy(None, initial_backoff_s=0.01, max_backoff_s=0.01)
    entry = Entry.model_validate({"name": "tiny", "kind": "llm", "hf_repo": "org/tiny"})

    @contextlib.asynccontextmanager
    async def run(registry: Registry) -> AsyncIterator[Recorded]:
        loading = Recorded()
        with serve(registry.app) as (host, port):
            url = f"http://{host}:{port}"

            def fetch_from(report: Report, stop: threading.Event) -> Path:
                cache = tmp_path / "cache"
                return fetch_model(entry, registry_url=url, token=None, cache=cache, report=report, stop=stop)

            wait = ModelWait("tiny", fetch_from, loading, threading.Event(), retries)
            async with asyncio.timeout(HANG_S):
                folder = await wait.folder()
        assert (folder / "config.json").read_bytes() == b"{}"
        yield loading

    return run


async def test_health_shows_mirror_progress(fetch: Fetch) -> None:
    """The registry's message is the detail, its progress the first half of fetching; it never decreases."""
    async with fetch(Registry(mirroring(0), mirroring(35), mirroring(80), "ready")) as loading:
        waits = [report for report in loading.reports if report[1].startswith("waiting: ")]
        share, detail = waits[1]
        assert share == pytest.approx(0.35 * MIRROR_SHARE)
        assert detail == "waiting: tiny is being mirrored: 35 % of 9.0 MB, 1.0 MB/s, 6 s left"
        shares = [share for share, _ in loading.reports]
        assert shares == sorted(shares)
        assert shares[-1] == FETCH_SHARE


async def test_failed_mirror_is_retried(fetch: Fetch) -> None:
    """The reason is shown, and logged once: it may be repaired while the service waits."""
    with structlog.testing.capture_logs() as logs:
        async with fetch(Registry(failed(), failed(), failed(), "ready")) as loading:
            assert (0.0, "waiting: tiny could not be mirrored: no token.") in loading.reports
    warnings = [line for line in logs if line["event"] == "model files not available yet"]
    assert [line["reason"] for line in warnings] == ["tiny could not be mirrored: no token."]


async def test_progress_is_logged_at_intervals(fetch: Fetch) -> None:
    """Each response has a new progress; the log does not show them all."""
    with structlog.testing.capture_logs() as logs:
        async with fetch(Registry(*(mirroring(percent) for percent in range(20)), "ready")):
            pass
    assert len([line for line in logs if line["event"] == "waiting for the registry"]) == 1


@pytest.mark.parametrize("code", ["store_failed", None])
async def test_other_503_shows_the_registrys_message(fetch: Fetch, code: str | None) -> None:
    trouble = ApiError("The bucket is gone.", status=503, code=code)
    async with fetch(Registry(trouble, "ready")) as loading:
        (wait,) = [detail for _, detail in loading.reports if detail.startswith("waiting: ")]
    assert "returned 503 for the list of files: The bucket is gone." in wait


async def test_cached_files_are_used_while_the_registry_mirrors(fetch: Fetch) -> None:
    """For example when the registry has lost the model."""
    async with fetch(Registry("ready")):
        pass
    async with fetch(Registry(mirroring(1))) as loading:
        assert loading.reports[-1][1] == "files from before"


async def test_unknown_model_names_the_script(fetch: Fetch) -> None:
    """Without internet access: what to do, in /health and in the log."""
    with structlog.testing.capture_logs() as logs:
        async with fetch(Registry(NotFound("No such model."), "ready")) as loading:
            assert any(
                detail.startswith("waiting: ") and "scripts/offline-setup.sh" in detail for _, detail in loading.reports
            )
    assert any("scripts/offline-setup.sh" in line.get("reason", "") for line in logs)


async def test_permanent_error_ends_the_wait(fetch: Fetch) -> None:
    """For example a refused token."""
    with pytest.raises(ModelFilesError, match="REGISTRY_TOKEN"):
        async with fetch(Registry(ApiError("no", status=401))):
            pass
