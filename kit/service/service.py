"""Common part of every model service: listen at once, load the model in the background, report progress.

A service passes `ModelService` a coroutine that loads an engine from a folder of verified files, and adds its OpenAI
routes to `create_service_app`. `/health`, `/gpu-stats`, `/v1/models` and `/metrics` are the same everywhere.
"""

import asyncio
import contextlib
import gc
import signal
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import structlog
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import DirectoryPath, Field, SecretStr

from kit.config.catalogue import Catalogue, Entry, Kind
from kit.config.settings import SettingsError, keys_of
from kit.errors import ModelNotFound
from kit.model_files.fetch import Report, fetch_model
from kit.net.retry import RetryPolicy
from kit.service.daemon_thread import in_daemon_thread
from kit.service.gpu import GpuReader
from kit.service.gpu_metrics import GpuGauges
from kit.service.load_state import Loading
from kit.service.model_wait import FETCH_SHARE, RETRIES, ModelWait
from kit.web.app import HttpSettings, create_app
from kit.web.guard import KeyRing
from kit.web.metrics import HttpMetrics

__all__ = [
    "Engine",
    "ModelService",
    "Report",
    "ServiceSettings",
    "create_service_app",
    "end_process",
    "in_daemon_thread",
]

log = structlog.get_logger(__name__)


class Engine(Protocol):
    """Inference engine of a service. `aclose` frees the device and ends all threads and processes."""

    name: str
    device: str

    async def aclose(self) -> None:
        """Stop the engine; called once, when the service stops."""
        ...


E = TypeVar("E", bound=Engine)
LoadEngine = Callable[[Path, Report], Awaitable[E]]


def _default_cache() -> Path:
    try:
        return Path.home() / ".cache" / "gpu-cluster" / "models"
    except RuntimeError as error:  # a container's user without a home folder
        raise SettingsError("This user has no home folder for model files. Set MODEL_CACHE to a folder.") from error


class ServiceSettings(HttpSettings):
    """Settings of every model service."""

    service_name: str = Field(description="this service's name in the gateway and the logs")
    model: str = Field(description="a name, alias or repository of the catalogue")
    catalogue: Path = Field(Path("models.yaml"), description="the path of models.yaml")
    registry_url: str = Field("http://127.0.0.1:8090", description="the registry's URL")
    registry_token: SecretStr | None = Field(None, description="the bearer token for the registry, if it requires one")
    model_cache: Path = Field(default_factory=_default_cache, description="a folder for model files")
    model_dir: DirectoryPath | None = Field(
        None, description="a folder to load instead of a download from the registry"
    )
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    api_keys: SecretStr | None = Field(None, description="comma-separated bearer keys that /v1 requires")

    def shown_as(self, program: str) -> str:
        """Return the service's name: several services run the same program."""
        return self.service_name

    def entry(self, *kinds: Kind) -> Entry:
        """Return the catalogue's entry for MODEL. Raises SettingsError if unknown or not of one of `kinds`."""
        catalogue = Catalogue.load(self.catalogue)
        try:
            entry = catalogue.resolve(self.model)
        except ModelNotFound as error:
            raise SettingsError(f"MODEL={self.model} is not in {self.catalogue}. {error.message}") from error
        if entry.kind not in kinds:
            raise SettingsError(
                f"MODEL={self.model} is of kind {entry.kind}; this service supports {' and '.join(kinds)}."
            )
        return entry

    def fetch(self, entry: Entry, report: Report, stop: threading.Event) -> Path:
        """Fetch the files of `entry` into MODEL_CACHE; blocks. Raises ModelFilesError."""
        token = self.registry_token.get_secret_value() if self.registry_token else None
        return fetch_model(
            entry, registry_url=self.registry_url, token=token, cache=self.model_cache, report=report, stop=stop
        )

    def key_ring(self) -> KeyRing:
        """Return the keys that /v1 requires. Raises SettingsError if API_KEYS is set but has none."""
        return KeyRing(keys_of(self.api_keys, "API_KEYS"), variable="API_KEYS")


def end_process() -> None:
    """Stop as after `docker stop`; the supervisor restarts the service."""
    signal.raise_signal(signal.SIGTERM)


class ModelService(Generic[E]):
    """Lifecycle of one model in this process: fetch, load, serve, close."""

    def __init__(
        self,
        settings: ServiceSettings,
        entry: Entry,
        load_engine: LoadEngine[E],
        end: Callable[[], None] = end_process,
        *,
        retries: RetryPolicy = RETRIES,
    ) -> None:
        """`end` is called after the engine has failed for good."""
        self.settings = settings
        self.entry = entry
        # In tokens; a service whose engine knows better sets it when that is loaded.
        self.context_length = entry.context_length
        self.loading = Loading(entry.name)
        self.metrics = HttpMetrics(settings.service_name)
        self._keys = settings.key_ring()
        self._load_engine = load_engine
        self._end = end
        self._retries = retries
        self._engine: E | None = None
        self._stop = threading.Event()
        self._started = time.monotonic()

    def engine(self) -> E:
        """Return the engine. Raises ModelLoading, or a 503 with the reason if loading or the engine failed."""
        refusal = self.loading.refusal()
        if refusal is not None:
            raise refusal
        assert self._engine is not None, "healthy, but no engine"
        return self._engine

    @property
    def loaded(self) -> E | None:
        """The engine, or None before it is loaded."""
        return self._engine

    def engine_failed(self, reason: str) -> None:
        """Record that the engine has failed for good, and end the process. Thread-safe; call once."""
        log.error("engine failed", model=self.entry.name, reason=reason)
        self.loading.fail(f"{reason:.300}. The service restarts.")
        self._end()

    def check_model(self, name: str | None) -> str:
        """Return the catalogue name for a request's `model`; None means this model.

        Raises ModelNotFound for any other model's name.
        """
        if name and name not in self.entry.names:
            raise ModelNotFound(name, self.entry.names)
        return self.entry.name

    def require_key(self, request: Request) -> None:
        """Check the API key of a route outside /v1, which the middleware does not guard. Raises InvalidApiKey."""
        refusal = self._keys.refusal(request.headers.get("authorization"), request.headers.get("x-api-key"))
        if refusal is not None:
            raise refusal

    @contextlib.asynccontextmanager
    async def running(self, _app: FastAPI) -> AsyncIterator[None]:
        """Lifespan of the application: load in the background, close the engine at the end."""
        task = asyncio.create_task(self._load(), name="load model")
        try:
            yield
        finally:
            self._stop.set()
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            if self._engine is not None:
                gc.unfreeze()
                await self._engine.aclose()

    async def _load(self) -> None:
        try:
            wait = ModelWait(
                self.entry.name, partial(self.settings.fetch, self.entry), self.loading, self._stop, self._retries
            )
            folder = self.settings.model_dir or await wait.folder()
            self.loading.report(FETCH_SHARE, "loading the model")
            self._engine = await self._load_engine(folder, self._report_load)
            # PyTorch and a model are some hundred thousand permanent objects; a full collection that scans them takes
            # 250 ms, with embeddings every two seconds.
            gc.collect()
            gc.freeze()
        except Exception as error:
            log.error("model failed to load", model=self.entry.name, exc_info=error)
            self.loading.fail(str(error) or type(error).__name__)
            return
        self.loading.finish()
        seconds = round(time.monotonic() - self._started, 1)
        log.info("model ready", model=self.entry.name, engine=self._engine.name, seconds=seconds)

    def _report_load(self, done: float, detail: str) -> None:
        self.loading.report(FETCH_SHARE + done * (1 - FETCH_SHARE), detail)

    def health(self) -> tuple[int, dict[str, Any]]:
        """Return the status code and body of `GET /health`."""
        now = self.loading.now
        engine = self._engine
        body: dict[str, Any] = {
            "status": now.status,
            "service": self.settings.service_name,
            "kind": self.entry.kind,
            "model": self.entry.name,
            "context_length": self.context_length,
            "engine": engine.name if engine else None,
            "device": engine.device if engine else self.settings.device,
            "uptime_seconds": round(time.monotonic() - self._started, 1),
        }
        if now.status != "healthy":
            body |= {"progress": now.progress, "detail": now.detail}
        return (200 if now.status == "healthy" else 503), body

    def models(self, *, aliases: bool) -> dict[str, Any]:
        """Return the body of `GET /v1/models`: the model, with `aliases` under each of its names."""
        length = self.context_length
        extra = {"kind": self.entry.kind, "context_length": length, "max_model_len": length}
        return {
            "object": "list",
            "data": [
                {"id": name, "object": "model", "created": 0, "owned_by": self.settings.service_name, **extra}
                | ({} if name == self.entry.name else {"root": self.entry.name})
                for name in (self.entry.names if aliases else (self.entry.name,))
            ],
        }


def create_service_app(service: ModelService[Any], *, title: str) -> FastAPI:
    """Create a model service's application with the common routes."""
    app = create_app(
        title=title,
        settings=service.settings,
        metrics=service.metrics,
        keys=service.settings.key_ring(),
        lifespan=service.running,
    )

    async def health() -> JSONResponse:
        """200 if the model is ready; 503 with `progress` and `detail` while it loads, or after a failure."""
        status, body = service.health()
        return JSONResponse(body, status_code=status)

    async def gpus() -> dict[str, Any]:
        """Memory, utilization, temperature and power of the GPUs visible to this service."""
        return await reader.read()

    async def models(aliases: bool = False) -> dict[str, Any]:
        """The model; with `aliases=true` once for each of its names."""
        return service.models(aliases=aliases)

    async def model(name: str) -> dict[str, Any]:
        """One of the model's names."""
        service.check_model(name)
        return next(model for model in service.models(aliases=True)["data"] if model["id"] == name)

    reader = GpuReader()
    service.metrics.before_scrape.append(GpuGauges(service.metrics.registry, reader.read).refresh)
    app.add_api_route("/health", health)
    app.add_api_route("/gpu-stats", gpus)
    app.add_api_route("/v1/models", models)
    app.add_api_route("/v1/models/{name:path}", model)
    return app
