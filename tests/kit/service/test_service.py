"""Lifecycle of a model service: fetch, load, serve, close, and its responses in each phase."""

import asyncio
import contextlib
import gc
import hashlib
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
import structlog
from fastapi import FastAPI, Response

from kit.config.settings import SettingsError, load_settings
from kit.errors import ApiError, ModelNotFound, NotFound
from kit.net.retry import RetryPolicy
from kit.service.service import ModelService, Report, ServiceSettings, create_service_app, in_daemon_thread
from tests.kit.served import bare_app, serve

WEIGHTS = b"weights"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
YAML = "tiny: {kind: embedding, hf_repo: org/tiny, aliases: [small]}\nother: {kind: llm, hf_repo: org/other}"


class FakeEngine:
    """What a real engine is to the frame."""

    name = "fake"
    device = "cpu"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.closed = 0

    async def aclose(self) -> None:
        self.closed += 1


async def load_at_once(folder: Path, _report: Report) -> FakeEngine:
    return FakeEngine(folder)


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., ServiceSettings]:
    """Settings of a service, its model in a local folder by default."""
    (tmp_path / "models.yaml").write_text(YAML)
    (tmp_path / "folder").mkdir()
    given = {
        "port": 1,
        "service_name": "embedding",
        "model": "tiny",
        "catalogue": tmp_path / "models.yaml",
        "model_cache": tmp_path / "cache",
        "model_dir": tmp_path / "folder",
    }
    return lambda **settings: load_settings(ServiceSettings, **{**given, **settings})


@contextlib.asynccontextmanager
async def running(service: ModelService[Any]) -> AsyncIterator[httpx2.AsyncClient]:
    """The service's application, started, with a client inside the same loop."""
    app = create_service_app(service, title="test")
    transport = httpx2.ASGITransport(app=app)
    with structlog.testing.capture_logs():
        async with service.running(app), httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
            yield client


async def load_ended() -> None:
    """Wait until the load has ended, well or badly."""
    await asyncio.gather(*(task for task in asyncio.all_tasks() if task.get_name() == "load model"))


def service_of(settings: ServiceSettings, load: Any = load_at_once) -> ModelService[FakeEngine]:
    return ModelService(settings, settings.entry("embedding"), load, retries=RetryPolicy(None, initial_backoff_s=0.02))


async def test_loaded_service_is_healthy(make: Callable[..., ServiceSettings], tmp_path: Path) -> None:
    """The engine gets the folder and is closed once at the end."""
    service = service_of(make())
    async with running(service) as client:
        await load_ended()
        response = await client.get("/health")
        engine = service.engine()
    body = response.json()
    assert body.pop("uptime_seconds") >= 0
    assert response.status_code == 200
    assert body == {
        "status": "healthy",
        "service": "embedding",
        "kind": "embedding",
        "model": "tiny",
        "context_length": None,
        "engine": "fake",
        "device": "cpu",
    }
    assert engine is service.loaded
    assert (engine.folder, engine.closed) == (tmp_path / "folder", 1)


async def test_loaded_model_is_frozen_for_the_garbage_collector(make: Callable[..., ServiceSettings]) -> None:

    def needs_scan(engine: FakeEngine | None) -> bool:
        return any(thing is engine for thing in gc.get_objects())

    service = service_of(make())
    async with running(service):
        await load_ended()
        assert service.loaded is not None
        assert not needs_scan(service.loaded)
    assert needs_scan(service.loaded)


async def test_health_responds_while_a_thread_loads(make: Callable[..., ServiceSettings]) -> None:
    """Requests for the engine get the progress."""
    reached, go_on = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    async def load(folder: Path, report: Report) -> FakeEngine:
        def block() -> FakeEngine:
            report(0.5, "reading weights")
            loop.call_soon_threadsafe(reached.set)
            assert go_on.wait(20)
            return FakeEngine(folder)

        return await in_daemon_thread(block)

    service = service_of(make(device="cuda"), load)
    async with running(service) as client:
        await reached.wait()
        health = await client.get("/health")
        assert health.status_code == 503
        assert {"status": "loading", "progress": 0.75, "detail": "reading weights"}.items() <= health.json().items()
        assert (health.json()["engine"], health.json()["device"]) == (None, "cuda")
        assert (await client.head("/health")).status_code == 503
        assert (await client.get("/v1/models")).status_code == 200
        assert "available" in (await client.get("/gpu-stats")).json()
        with pytest.raises(ApiError) as caught:
            service.engine()
        assert (caught.value.status, caught.value.code) == (503, "model_loading")
        assert "75 %" in caught.value.message
        go_on.set()
        await load_ended()
        assert (await client.get("/health")).status_code == 200
        assert (await client.head("/health")).status_code == 200


@pytest.mark.parametrize("error", [ValueError("not enough memory"), SystemExit(1), StopIteration(), KeyError()])
async def test_failed_load_is_reported(make: Callable[..., ServiceSettings], error: BaseException) -> None:
    """The service keeps running; /health and every request get the reason."""

    async def load(_folder: Path, _report: Report) -> FakeEngine:
        def fail() -> FakeEngine:
            raise error

        return await in_daemon_thread(fail)

    service = service_of(make(), load)
    async with running(service) as client:
        await load_ended()
        health = await client.get("/health")
        assert health.status_code == 503
        assert health.json()["status"] == "failed"
        assert (str(error) or type(error).__name__) in health.json()["detail"]
        with pytest.raises(ApiError, match="tiny is not available") as caught:
            service.engine()
        assert (caught.value.status, caught.value.code) == (503, "model_failed")
    assert service.loaded is None


async def test_failed_engine_serves_no_request(make: Callable[..., ServiceSettings]) -> None:
    """It is still closed at the end."""
    service = service_of(make())
    async with running(service) as client:
        await load_ended()
        engine = service.engine()
        service.loading.fail("the engine process ended with -9")
        assert (await client.get("/health")).json()["status"] == "failed"
        with pytest.raises(ApiError, match="ended with -9"):
            service.engine()
    assert engine.closed == 1


async def test_stop_does_not_wait_for_a_load(make: Callable[..., ServiceSettings]) -> None:
    reached, never = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    async def load(folder: Path, _report: Report) -> FakeEngine:
        def block() -> FakeEngine:
            loop.call_soon_threadsafe(reached.set)
            never.wait(20)
            return FakeEngine(folder)

        return await in_daemon_thread(block)

    service = service_of(make(), load)
    async with running(service):
        await reached.wait()
    assert not never.is_set()  # it came here while the thread was still at it
    assert service.loaded is None
    never.set()


def hub(files: dict[str, bytes], *, there: Callable[[], bool] = lambda: True) -> FastAPI:
    """A registry's reading side with one model, once `there`."""
    app: FastAPI = bare_app()

    @app.get("/api/models/org/tiny/revision/main")
    async def listing() -> dict[str, Any]:
        if not there():
            raise NotFound("No such model.")
        siblings = [
            {"rfilename": name, "size": len(data), "lfs": {"sha256": hashlib.sha256(data).hexdigest()}}
            for name, data in files.items()
        ]
        return {"sha": COMMIT, "siblings": siblings}

    @app.get("/org/tiny/resolve/{revision}/{path:path}")
    async def resolve(revision: str, path: str) -> Response:
        return Response(files[path])

    return app


async def waiting_for(client: httpx2.AsyncClient, text: str) -> None:
    """Poll /health until its detail has `text`."""
    async with asyncio.timeout(20):
        while text not in (await client.get("/health")).json().get("detail", ""):  # noqa: ASYNC110  # asked over HTTP
            await asyncio.sleep(0.01)


async def test_waits_for_a_registry_that_starts_later(make: Callable[..., ServiceSettings]) -> None:
    with serve(FastAPI()) as (host, port):
        pass  # a port where nobody listens now
    mirrored = threading.Event()
    service = service_of(make(model_dir=None, registry_url=f"http://{host}:{port}"))
    async with running(service) as client:
        await waiting_for(client, "waiting: The registry at")
        with serve(hub({"model.safetensors": WEIGHTS}, there=mirrored.is_set), port=port):
            await waiting_for(client, "offline-setup.sh")
            mirrored.set()
            await load_ended()
        assert (await client.get("/health")).status_code == 200
        assert (service.engine().folder / "model.safetensors").read_bytes() == WEIGHTS


async def test_permanent_registry_error_fails_at_once(make: Callable[..., ServiceSettings]) -> None:
    app: FastAPI = bare_app(keys=["k"])
    app.add_api_route("/api/models/{rest:path}", lambda rest: Response(status_code=401))
    with serve(app) as (host, port):
        service = service_of(make(model_dir=None, registry_url=f"http://{host}:{port}"))
        async with running(service) as client:
            await load_ended()
            health = (await client.get("/health")).json()
    assert health["status"] == "failed"
    assert "REGISTRY_TOKEN" in health["detail"]


@pytest.mark.parametrize("name", ["tiny", "small", "org/tiny", None, ""])
def test_model_names_of_requests(make: Callable[..., ServiceSettings], name: str | None) -> None:
    assert service_of(make()).check_model(name) == "tiny"


@pytest.mark.parametrize("name", ["other", "Tiny", "tiny ", "cluster", "gpt-4", "org/other"])
def test_unknown_model_is_rejected(make: Callable[..., ServiceSettings], name: str) -> None:
    with pytest.raises(ModelNotFound, match="org/tiny, small, tiny"):
        service_of(make()).check_model(name)


@pytest.mark.parametrize("model", ["tiny", "small", "org/tiny"])
def test_model_setting_accepts_name_alias_or_repository(make: Callable[..., ServiceSettings], model: str) -> None:
    assert make(model=model).entry("embedding", "reranker").name == "tiny"


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"model": "nope"}, "MODEL=nope is not in .*models.yaml.*other, tiny"),
        ({"model": "other"}, "MODEL=other is of kind llm; this service supports embedding and reranker"),
        ({"catalogue": Path("/nowhere.yaml")}, "Set CATALOGUE"),
    ],
)
def test_invalid_model_setting_fails_at_start(make: Callable[..., ServiceSettings], settings: Any, says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        make(**settings).entry("embedding", "reranker")


def test_missing_model_dir_fails_at_start(make: Callable[..., ServiceSettings]) -> None:
    with pytest.raises(SettingsError, match="MODEL_DIR"):
        make(model_dir="/nowhere")


def test_user_without_home_needs_model_cache(
    make: Callable[..., ServiceSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container's user may have no home folder."""

    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    assert make(model_cache="/cache").model_cache == Path("/cache")
    with pytest.raises(SettingsError, match="Set MODEL_CACHE"):
        load_settings(ServiceSettings, port=1, service_name="x", model="tiny")


@pytest.mark.parametrize(("keys", "opens"), [("k", "k"), ("a,k", "k"), (" a , k ,", "a")])
async def test_api_keys_guard_v1_only(make: Callable[..., ServiceSettings], keys: str, opens: str) -> None:
    async with running(service_of(make(api_keys=keys))) as client:
        await load_ended()
        assert (await client.get("/v1/models")).status_code == 401
        assert (await client.get("/v1/models", headers={"Authorization": f"Bearer {opens}"})).status_code == 200
        assert (await client.get("/health")).status_code == 200
        assert (await client.get("/gpu-stats")).status_code == 200


@pytest.mark.parametrize("keys", [",", " ", " , ,"])
def test_empty_api_keys_is_an_error(make: Callable[..., ServiceSettings], keys: str) -> None:
    """It must not disable the check."""
    with pytest.raises(SettingsError, match="API_KEYS contains no key"):
        make(api_keys=keys).key_ring()


async def test_v1_models_lists_aliases_on_request(make: Callable[..., ServiceSettings]) -> None:
    """Aliases have the model as their root."""
    async with running(service_of(make())) as client:
        (once,) = (await client.get("/v1/models")).json()["data"]
        listed = (await client.get("/v1/models?aliases=true")).json()
    assert listed["object"] == "list"
    assert listed["data"][0] == once
    assert once["max_model_len"] == once["context_length"]
    assert [(model["id"], model.get("root")) for model in listed["data"]] == [
        ("tiny", None),
        ("small", "tiny"),
        ("org/tiny", "tiny"),
    ]
    assert all(model["object"] == "model" and model["owned_by"] == "embedding" for model in listed["data"])


def test_official_client_reads_models(make: Callable[..., ServiceSettings]) -> None:
    """`models.list()` and `models.retrieve()`, also with a slash in the name."""
    app = create_service_app(service_of(make()), title="test")
    with (
        structlog.testing.capture_logs(),
        serve(app) as (host, port),
        openai.OpenAI(base_url=f"http://{host}:{port}/v1", api_key="k", max_retries=0) as client,
    ):
        assert [model.id for model in client.models.list()] == ["tiny"]
        for name in ("tiny", "small", "org/tiny"):
            assert client.models.retrieve(name).id == name
        with pytest.raises(openai.NotFoundError) as caught:
            client.models.retrieve("gpt-4")
        assert caught.value.code == "model_not_found"


async def test_openapi_has_each_operation_once(make: Callable[..., ServiceSettings]) -> None:
    async with running(service_of(make())) as client:
        paths = (await client.get("/openapi.json")).json()["paths"]
    assert {"/health", "/gpu-stats", "/v1/models", "/v1/models/{name}"} <= set(paths)
