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
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import structlog
from prometheus_client import REGISTRY, Metric
from starlette.types import ASGIApp

from kit.catalogue import Entry
from kit.metrics import HttpMetrics
from kit.service import Report, in_daemon_thread
from services.llm import vllm_media
from services.llm.image_source import ImageSource
from services.llm.vllm_arguments import command_line, parse, prepare_environment

log = structlog.get_logger(__name__)

STOP_S = 15.0
WATCH_S = 1.0


async def open_engine(
    folder: Path,
    entry: Entry,
    arguments: dict[str, Any],
    *,
    images: ImageSource,
    metrics: HttpMetrics,
    on_death: Callable[[str], None],
    report: Report,
) -> "VllmEngine":
    """Start vLLM on the model in `folder`; takes from half a minute to several.

    Raises SettingsError for a wrong argument, RuntimeError with what to change when the model does not fit. `on_death`
    is called when the engine dies later, and the process is then asked to end, so that its supervisor starts a new one.
    """
    prepare_environment()
    level = logging.getLogger().level
    report(0.05, "importing vLLM")
    cpu, parsed = await in_daemon_thread(_prepare, folder, entry, arguments)
    vllm_media.register(images)
    report(0.2, "vLLM loads the model and measures memory")
    client = await _start(parsed)
    report(0.95, "starting vLLM's server")
    engine = VllmEngine(client, images, "cpu" if cpu else "cuda", on_death)
    try:
        await engine.serve(parsed)
    except BaseException:
        await engine.aclose()
        raise
    finally:
        _take_logs_back(level)
    metrics.registry.register(_VllmMetrics())
    return engine


class VllmEngine:
    """A running vLLM. `app` is vLLM's own application."""

    def __init__(self, client: Any, images: ImageSource, device: str, on_death: Callable[[str], None]) -> None:
        self.name = "vllm"
        self.device = device
        self.app: ASGIApp
        self._client = client
        self._images = images
        self._on_death = on_death
        self._stack = contextlib.AsyncExitStack()
        self._watch: asyncio.Task[None] | None = None

    async def serve(self, arguments: Any) -> None:
        """Build vLLM's application on the running engine."""
        from vllm.entrypoints.launchers.api_server.app_state import init_app_state
        from vllm.entrypoints.launchers.app import build_app

        tasks = await self._client.get_supported_tasks()
        app = build_app(arguments, tasks, self._client.model_config)
        await init_app_state(self._client, app.state, arguments, tasks)
        # Its handlers tell the server to end when the engine has died, which we watch for ourselves.
        app.state.server = SimpleNamespace(should_exit=False)
        # Nobody else runs its lifespan, since it is not the application that the server was started with.
        await self._stack.enter_async_context(app.router.lifespan_context(app))
        self.app = app
        self._watch = asyncio.create_task(self._watch_over(), name="watch vLLM")

    async def aclose(self) -> None:
        """Stop the engine and see to it that no process of it is left."""
        if self._watch is not None:
            self._watch.cancel()
        try:
            await self._stack.aclose()
            handler = self._client.output_handler
            if handler is not None:
                handler.cancel()  # else it takes the engine's end for a failure, and says so at length
            await asyncio.to_thread(self._client.shutdown, STOP_S)
        finally:
            await self._images.aclose()
            await asyncio.to_thread(end_children)

    async def _watch_over(self) -> None:
        while not self._client.errored:  # noqa: ASYNC110  # vLLM has no event for it, and looks in the same way itself
            await asyncio.sleep(WATCH_S)
        self._on_death("vLLM's engine died; the log has its last words. The service ends so that it is started anew.")
        log.error("vLLM's engine died, ending the service")
        signal.raise_signal(signal.SIGTERM)


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
