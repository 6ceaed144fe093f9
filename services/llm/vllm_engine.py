"""vLLM's own OpenAI server inside this process: its application as it is, its engine started and ended by us.

The engine computes in child processes. They end with the service whatever happens: after a clean stop, when the start
is broken off, and when vLLM itself leaves one behind.
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
from services.llm import vllm_media
from services.llm.graceful_stop import INTERRUPTED
from services.llm.image_source import ImageSource
from services.llm.vllm_arguments import command_line, parse, prepare_environment
from services.llm.vllm_failures import Causes, explain

log = structlog.get_logger(__name__)

STOP_S = 15.0
WATCH_S = 1.0


class StartFailed(RuntimeError):
    """vLLM did not start; the message says why and what to change."""


async def open_engine(
    folder: Path,
    entry: Entry,
    arguments: dict[str, Any],
    *,
    images: ImageSource,
    metrics: HttpMetrics,
    on_engine_failed: Callable[[str], None],
    report: Report,
) -> "VllmEngine":
    """Start vLLM on the model in `folder`; takes from half a minute to several.

    Raises SettingsError for an invalid argument, StartFailed if the model does not fit. If the engine fails later,
    `on_engine_failed` is called and the process stops, so that its supervisor restarts it.
    """
    prepare_environment()
    level = logging.getLogger().level
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(images.aclose)
        causes = Causes()
        stack.callback(causes.close)
        stack.push_async_callback(asyncio.to_thread, end_children)
        report(0.05, "importing vLLM")
        cpu, parsed = await in_daemon_thread(_prepare, folder, entry, arguments)
        vllm_media.register(images)
        report(0.2, "vLLM loads the model and measures memory")
        try:
            client = await _start(parsed)
        except Exception as error:
            raise StartFailed(explain(error, causes.first(), cache_gib=causes.cache_gib(), cpu=cpu)) from error
        stack.push_async_callback(_shut_down, client)
        report(0.95, "starting vLLM's server")
        try:
            app = await stack.enter_async_context(_application(client, parsed))
        finally:
            _take_logs_back(level)
        metrics.registry.register(_VllmMetrics())
        return VllmEngine(app, client, stack.pop_all(), "cpu" if cpu else "cuda", on_engine_failed)


class VllmEngine:
    """A running vLLM. `app` is vLLM's own application. Made on the event loop."""

    name = "vllm"

    def __init__(
        self,
        app: ASGIApp,
        client: Any,
        stack: contextlib.AsyncExitStack,
        device: str,
        on_engine_failed: Callable[[str], None],
    ) -> None:
        """`stack` ends the engine and everything that was made for it."""
        self.app = app
        self.device = device
        self._client = client
        self._stack = stack
        self._on_engine_failed = on_engine_failed
        self._watch = asyncio.create_task(self._watch_over(), name="watch vLLM")

    async def interrupt(self) -> None:
        """End every answer with an error that its client reads, as vLLM ends one that it has no room for."""
        from vllm.exceptions import GracefulHTTPError

        self._client.output_processor.propagate_error(GracefulHTTPError(INTERRUPTED, HTTPStatus.SERVICE_UNAVAILABLE))

    async def aclose(self) -> None:
        """Stop the engine and see to it that no process of it is left."""
        self._watch.cancel()
        await self._stack.aclose()

    async def _watch_over(self) -> None:
        while not self._client.errored:  # noqa: ASYNC110  # vLLM has no event for it, and looks in the same way itself
            await asyncio.sleep(WATCH_S)
        self._on_engine_failed(
            "vLLM's engine died; the log has its last words. The service ends so that it is started anew."
        )
        log.error("vLLM's engine died, ending the service")
        signal.raise_signal(signal.SIGTERM)


@contextlib.asynccontextmanager
async def _application(client: Any, arguments: Any) -> AsyncIterator[ASGIApp]:
    """vLLM's application on the running engine, with its lifespan, which nobody else runs: uvicorn runs ours."""
    from vllm.entrypoints.launchers.api_server.app_state import init_app_state
    from vllm.entrypoints.launchers.app import build_app

    tasks = await client.get_supported_tasks()
    app = build_app(arguments, tasks, client.model_config)
    install_http_error_handler(app)  # vLLM has handlers for FastAPI's errors and its own
    app.middleware_stack = app.build_middleware_stack()  # vLLM has built it already, without that handler
    await init_app_state(client, app.state, arguments, tasks)
    # Its handlers tell the server to end when the engine has died, which we watch for ourselves.
    app.state.server = SimpleNamespace(should_exit=False)
    async with app.router.lifespan_context(app):
        yield app


async def _shut_down(client: Any) -> None:
    if client.output_handler is not None:
        client.output_handler.cancel()  # else it takes the engine's end for a failure, and says so at length
    await asyncio.to_thread(client.shutdown, STOP_S)


def end_children() -> None:
    """End every process that this one has started, and theirs: ask, wait, then kill. Blocks for at most some seconds.

    Not only those of `multiprocessing`: vLLM looks into a model's code with a program of its own.
    """
    import psutil

    children = [child for child in psutil.Process().children(recursive=True) if not _is_tracker(child)]
    for child in children:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.terminate()
    _, alive = psutil.wait_procs(children, timeout=STOP_S / 3)
    for child in alive:
        log.warning("a process of vLLM did not end and is killed", pid=child.pid)
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    psutil.wait_procs(alive, timeout=STOP_S / 3)


def _is_tracker(process: Any) -> bool:
    """Whether it is multiprocessing's own, which frees shared memory that was left behind and then ends by itself."""
    import psutil

    try:
        return any("resource_tracker" in word for word in process.cmdline())
    except psutil.NoSuchProcess:
        return False


async def _start(arguments: Any) -> Any:
    """Start the engine in a thread: vLLM waits for its processes without letting the event loop go on."""
    ended = threading.Event()

    def start() -> Any:
        try:
            return _start_engine(arguments)
        finally:
            ended.set()

    try:
        return await in_daemon_thread(start)
    except asyncio.CancelledError:
        # The service stops while it loads: the processes that are there end, and with them the thread.
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


def _take_logs_back(level: int) -> None:
    """Send vLLM's records of this process where all logs go; its child processes write their own.

    While it starts, vLLM gives its loggers a handler, and something that it imports raises the root's level.
    """
    logging.getLogger().setLevel(level)
    vllm_log = logging.getLogger("vllm")
    vllm_log.handlers = []
    vllm_log.propagate = True


class _VllmMetrics:
    """vLLM's own metrics as part of our page; what else it registers there is ours already."""

    def collect(self) -> Iterator[Metric]:
        """Every metric of vLLM's."""
        for metric in REGISTRY.collect():
            if metric.name.startswith("vllm"):
                yield metric
