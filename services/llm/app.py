"""Application factory of the text and vision service."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Protocol

from starlette.types import ASGIApp

from kit.config.catalogue import Entry
from kit.errors import ApiError
from kit.service.service import ModelService, Report, create_service_app, in_daemon_thread
from kit.web.app import readable_by_pages
from services.llm.dispatch import Dispatcher
from services.llm.engine_selection import choose_engine
from services.llm.settings import LlmSettings


class LlmEngine(Protocol):
    """A loaded model with its ASGI application."""

    name: str
    device: str

    @property
    def app(self) -> ASGIApp:
        """The application for all paths except the service's own."""
        ...

    async def interrupt(self) -> None:
        """End all responses in progress with an error event."""
        ...

    async def aclose(self) -> None:
        """Stop the engine with all its threads and processes."""
        ...


# Of the transformers engine, in tokens.
DEFAULT_MAX_TOKENS = 2048
Service = ModelService[LlmEngine]
# Loads the engine for the model in a folder. Runs on the event loop; must not block it.
OpenEngine = Callable[[Service, LlmSettings, Path, Report], Awaitable[LlmEngine]]


def create(settings: LlmSettings, open_engine: OpenEngine | None = None) -> Dispatcher:
    """Create the application; the model loads once it runs. `open_engine` None selects the engine by the settings.

    Raises SettingsError if MODEL is not a text or vision model of the catalogue, or ENGINE is not installed.
    """
    entry = settings.entry("llm", "multimodal")
    opening = open_engine
    if opening is None:
        chosen = choose_engine(settings.engine, settings.device)
        opening = open_vllm if chosen == "vllm" else open_transformers

    async def load(folder: Path, report: Report) -> LlmEngine:
        return await opening(service, settings, folder, report)

    service: Service = ModelService(settings, entry, load)
    frame = create_service_app(service, title=f"{entry.name} ({entry.kind})")

    def backend() -> ASGIApp | ApiError:
        refusal = service.loading.refusal()
        return refusal if refusal is not None else service.engine().app

    async def interrupt() -> None:
        if service.loaded is not None:
            await service.loaded.interrupt()

    return Dispatcher(
        frame,
        backend,
        interrupt=interrupt,
        browser=settings.browser_guard(),
        keys=settings.key_ring(),
        metrics=service.metrics,
        readable=lambda app: readable_by_pages(app, settings),
    )


def engine_arguments(entry: Entry, settings: LlmSettings) -> dict[str, Any]:
    """Return the engine's arguments: the catalogue's, overridden by ENGINE_ARGS. `-` in names means `_`."""
    merged = {**entry.engine_args, **settings.engine_args}
    return {name.removeprefix("--").replace("-", "_"): value for name, value in merged.items()}


def default_max_tokens(entry: Entry, settings: LlmSettings) -> int | None:
    """Return the limit of responses to requests without one: DEFAULT_MAX_TOKENS, else the catalogue's."""
    return settings.default_max_tokens or entry.default_max_tokens


async def open_vllm(service: Service, settings: LlmSettings, folder: Path, report: Report) -> LlmEngine:
    """Open vLLM's server on the model in `folder`."""
    from services.llm.vllm.engine import open_engine

    arguments = engine_arguments(service.entry, settings)
    if service.entry.kind == "multimodal":
        arguments.setdefault("limit_mm_per_prompt", {"image": settings.max_images})
    engine = await open_engine(
        folder,
        service.entry,
        arguments,
        default_max_tokens=default_max_tokens(service.entry, settings),
        images=settings.image_source(),
        metrics=service.metrics,
        on_engine_failed=service.loading.fail,
        report=report,
    )
    service.context_length = engine.context_length
    return engine


async def open_transformers(service: Service, settings: LlmSettings, folder: Path, report: Report) -> LlmEngine:
    """Open transformers' handlers on the model in `folder`."""
    from services.llm.transformers.engine import TokenizerTools, TransformersEngine, make_runner
    from services.llm.transformers.generation import Generations, Limits
    from services.llm.transformers.model import cache_tokens, load
    from services.llm.transformers.routes import create_routes
    from services.llm.transformers.token_metrics import TokenMetrics

    arguments = engine_arguments(service.entry, settings)
    loaded = await in_daemon_thread(
        load, folder, service.entry, arguments, settings.device, settings.cpu_threads, report
    )
    report(0.9, "starting the batch")
    cache = cache_tokens(loaded, arguments)
    runner, batched = await make_runner(
        loaded, cache=cache, max_concurrent=settings.max_concurrent, on_engine_failed=service.loading.fail
    )
    limits = Limits(
        context=min(loaded.context, cache) if batched else loaded.context,
        default_max_tokens=default_max_tokens(service.entry, settings) or DEFAULT_MAX_TOKENS,
        max_concurrent=settings.max_concurrent,
        max_queue=settings.max_queue,
    )
    service.context_length = limits.context
    metrics = TokenMetrics(service.metrics.registry, model=service.entry.name)
    generations = Generations(runner, limits, ends=loaded.ends, tools=TokenizerTools(loaded), metrics=metrics)
    metrics.watch_requests(lambda: generations.in_flight, slots=limits.max_concurrent if batched else 1)
    metrics.watch_layers(loaded.model)
    engine = TransformersEngine(loaded, service.entry.name, generations, settings.image_source(), batched=batched)
    engine.app = create_routes(service, settings, engine)
    return engine
