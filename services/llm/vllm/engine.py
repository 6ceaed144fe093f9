"""vLLM's OpenAI server in this process: its unchanged application, and an engine that we start and stop.

The engine runs in child processes, which always end with the service: after a clean stop, a cancelled start, or if vLLM
leaves one behind.
"""

import asyncio
import contextlib
import logging
import os
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from http import HTTPStatus
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import structlog
from prometheus_client import REGISTRY, Metric
from starlette.types import ASGIApp

from kit.config.catalogue import Entry
from kit.errors import install_http_error_handler
from kit.service.service import Report, in_daemon_thread
from kit.web.metrics import HttpMetrics
from services.llm.graceful_stop import INTERRUPTED
from services.llm.images.source import ImageSource
from services.llm.vllm import media_connector
from services.llm.vllm.arguments import command_line, parse, prepare_environment
from services.llm.vllm.failures import StartErrors, explain
from services.llm.vllm.tool_filter import ToolFilter
from services.llm.vllm.tool_parsers import has_automatic_tools

log = structlog.get_logger(__name__)

STOP_S = 15.0
WATCH_S = 1.0


class StartFailed(RuntimeError):
    """vLLM did not start; the message has the cause and the remedy."""


async def open_engine(
    folder: Path,
    entry: Entry,
    arguments: dict[str, Any],
    *,
    default_max_tokens: int | None,
    images: ImageSource,
    metrics: HttpMetrics,
    on_engine_failed: Callable[[str], None],
    report: Report,
) -> "VllmEngine":
    """Start vLLM with the model in `folder`; takes from half a minute to several minutes.

    Raises SettingsError for an invalid argument, StartFailed if the model does not fit. If the engine fails later,
    `on_engine_failed` is called and the process stops, so that its supervisor restarts it. `default_max_tokens` limits
    responses to requests without a limit; None means the rest of the context.
    """
    prepare_environment()
    level = logging.getLogger().level
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(images.aclose)
        errors = StartErrors()
        stack.callback(errors.close)
        stack.push_async_callback(asyncio.to_thread, end_children)
        report(0.05, "importing vLLM")
        cpu, parsed = await in_daemon_thread(_prepare, folder, entry, arguments)
        media_connector.register(images)
        report(0.2, "vLLM is loading the model and profiling memory")
        try:
            client = await _start(parsed)
        except Exception as error:
            raise StartFailed(explain(error, errors.first(), cache_gib=errors.cache_gib(), cpu=cpu)) from error
        stack.push_async_callback(_shut_down, client)
        report(0.95, "starting vLLM's server")
        try:
            app = await stack.enter_async_context(_application(client, parsed, default_max_tokens))
        finally:
            _restore_logging(level)
        metrics.registry.register(_VllmMetrics())
        if not has_automatic_tools(folder, arguments, parsed):
            app = ToolFilter(app, entry.name, can_force=parsed.tool_call_parser is not None)
        return VllmEngine(app, client, stack.pop_all(), "cpu" if cpu else "cuda", on_engine_failed)


class VllmEngine:
    """A running vLLM engine. `app` is vLLM's application. Create it on the event loop."""

    name = "vllm"

    def __init__(
        self,
        app: ASGIApp,
        client: Any,
        stack: contextlib.AsyncExitStack,
        device: str,
        on_engine_failed: Callable[[str], None],
    ) -> None:
        """`stack` closes the engine and all its resources."""
        self.app = app
        self.device = device
        # In tokens: that of the arguments, or what vLLM found to fit.
        self.context_length: int = client.model_config.max_model_len
        self._client = client
        self._stack = stack
        self._on_engine_failed = on_engine_failed
        self._watch = asyncio.create_task(self._watch_over(), name="watch vLLM")

    async def interrupt(self) -> None:
        """End all responses in progress with an error event, as vLLM does on overload."""
        from vllm.exceptions import GracefulHTTPError

        self._client.output_processor.propagate_error(GracefulHTTPError(INTERRUPTED, HTTPStatus.SERVICE_UNAVAILABLE))

    async def aclose(self) -> None:
        """Stop the engine with all its processes."""
        self._watch.cancel()
        await self._stack.aclose()

    async def _watch_over(self) -> None:
        while not self._client.errored:  # noqa: ASYNC110  # vLLM has no event for it, and polls as well
            await asyncio.sleep(WATCH_S)
        self._on_engine_failed("vLLM's engine failed; see the service's log for the cause. The service restarts.")
        log.error("vLLM's engine failed; stopping the service")
        signal.raise_signal(signal.SIGTERM)


@contextlib.asynccontextmanager
async def _application(client: Any, arguments: Any, default_max_tokens: int | None) -> AsyncIterator[ASGIApp]:
    """Build vLLM's application and run its lifespan; uvicorn runs only ours."""
    from vllm.entrypoints.launchers.api_server.app_state import init_app_state
    from vllm.entrypoints.launchers.app import build_app

    tasks = await client.get_supported_tasks()
    app = build_app(arguments, tasks, client.model_config)
    install_http_error_handler(app)  # vLLM handles only FastAPI's errors and its own
    app.middleware_stack = app.build_middleware_stack()  # built by vLLM without that handler
    await init_app_state(client, app.state, arguments, tasks)
    if default_max_tokens is not None:
        # vLLM's own option, max_new_tokens in override_generation_config, limits requests with a limit as well.
        # Completions have a default of 16 tokens, and messages must set a limit.
        for serving in (app.state.openai_serving_chat, app.state.openai_serving_responses):
            serving.default_sampling_params["max_tokens"] = default_max_tokens
    # Its handlers set this when the engine has failed; we watch for that ourselves.
    app.state.server = SimpleNamespace(should_exit=False)
    async with app.router.lifespan_context(app):
        yield app


async def _shut_down(client: Any) -> None:
    if client.output_handler is not None:
        client.output_handler.cancel()  # otherwise it logs the shutdown as a failure
    await asyncio.to_thread(client.shutdown, STOP_S)


def end_children() -> None:
    """Terminate all descendant processes, and kill those that do not end. Blocks for some seconds at most.

    Not only those of `multiprocessing`: vLLM inspects model code in a subprocess.
    """
    import psutil

    children = [child for child in psutil.Process().children(recursive=True) if not _is_tracker(child)]
    for child in children:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.terminate()
    _, alive = psutil.wait_procs(children, timeout=STOP_S / 3)
    for child in alive:
        log.warning("killing a vLLM process that did not terminate", pid=child.pid)
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    psutil.wait_procs(alive, timeout=STOP_S / 3)


def _is_tracker(process: Any) -> bool:
    """Return whether it is multiprocessing's resource tracker, which ends by itself after its cleanup."""
    import psutil

    try:
        return any("resource_tracker" in word for word in process.cmdline())
    except psutil.NoSuchProcess:
        return False


async def _start(arguments: Any) -> Any:
    """Start the engine in a thread: vLLM blocks until its processes are up."""
    ended = threading.Event()

    def start() -> Any:
        try:
            return _start_engine(arguments)
        finally:
            ended.set()

    try:
        return await in_daemon_thread(start)
    except asyncio.CancelledError:
        # The service stops during the start: ending the processes also ends the thread.
        for _ in range(int(STOP_S)):
            await asyncio.to_thread(end_children)
            if await asyncio.to_thread(ended.wait, 1.0):
                break
        await asyncio.to_thread(end_children)
        raise


def _start_engine(arguments: Any) -> Any:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.engine.async_llm import AsyncLLM

    engine_arguments = AsyncEngineArgs.from_cli_args(arguments)
    config = engine_arguments.create_engine_config(usage_context=UsageContext.OPENAI_API_SERVER)
    return AsyncLLM.from_vllm_config(
        vllm_config=config,
        usage_context=UsageContext.OPENAI_API_SERVER,
        enable_log_requests=engine_arguments.enable_log_requests,
        aggregate_engine_logging=engine_arguments.aggregate_engine_logging,
        disable_log_stats=engine_arguments.disable_log_stats,
    )


def _prepare(folder: Path, entry: Entry, arguments: dict[str, Any]) -> tuple[bool, Any]:
    from vllm.platforms import current_platform

    cpu = bool(current_platform.is_cpu())
    log.info("starting vLLM", cpu=cpu, pid=os.getpid())
    return cpu, parse(command_line(folder, entry, arguments, cpu=cpu))


def _restore_logging(level: int) -> None:
    """Send vLLM's log records of this process to our handlers; its child processes write their own.

    During its start vLLM adds a handler to its loggers, and one of its imports raises the root's level.
    """
    logging.getLogger().setLevel(level)
    vllm_log = logging.getLogger("vllm")
    vllm_log.handlers = []
    vllm_log.propagate = True


class _VllmMetrics:
    """vLLM's metrics on our /metrics page; the other metrics of its registry are ours already."""

    def collect(self) -> Iterator[Metric]:
        """Yield vLLM's metrics."""
        for metric in REGISTRY.collect():
            if metric.name.startswith("vllm"):
                yield metric
