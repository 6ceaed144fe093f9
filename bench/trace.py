"""`python -m bench.trace`: how many modules of the gateway a request enters, and how often control moves between them.

    python -m bench.trace                    the three cases on this tree
    python -m bench.trace --tree ../before   the same on another checkout, to compare
    python -m bench.trace --calls            also every call, in order

A gateway with two fake backends runs in this process, warmed up, its requests on one kept connection, under
`sys.setprofile`. Every call of a Python function and every resumption of a coroutine is an event of the function's
module. `modules` are the distinct modules with an event; a hop is an event whose module differs from that of the event
before it. Returns are not events, so calling a neighbour and coming back is one hop until the caller calls again.
Only modules below `--packages` count, and only what runs for the request: tasks that were running before it (health
checks, discovery, timeouts) are left out. Each figure is the median of `--runs` gateways.

    fast path   a chat completion with one response body
    stream      a streamed chat of four tokens that arrive in one read
    resumed     a streamed chat of four tokens in separate reads; the connection to its backend is reset before the
                fourth, and the other backend continues
"""

import argparse
import asyncio
import contextlib
import json
import logging
import socket
import statistics
import sys
import tempfile
from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import structlog

from bench.harness.options import at_least
from bench.harness.report import last_line, table
from tests.support.backends.openai_backend import FakeBackend

CASES = ("fast path", "stream", "resumed")
KEYS = ("modules", "hops")
CATALOGUE = "traced: {kind: llm, hf_repo: bench/traced, revision: main}\n"
WARM_UP = 6
TOKENS = 4
RATE = 50.0
# More time than a gateway needs for its accounting after the last byte, in seconds.
SETTLE_S = 0.05


@dataclass
class Trace:
    """The calls of one request, in order: module and function."""

    calls: list[tuple[str, str]] = field(default_factory=list)

    @property
    def modules(self) -> int:
        """Distinct modules entered."""
        return len({module for module, _ in self.calls})

    @property
    def hops(self) -> int:
        """Calls into another module than the call before."""
        return sum(before[0] != after[0] for before, after in zip(self.calls, self.calls[1:], strict=False))


class Tracer:
    """Records calls into the modules below `tree` that belong to `packages`."""

    def __init__(self, tree: Path, packages: Collection[str]) -> None:
        self._tree = tree
        self._packages = packages
        self._modules: dict[CodeType, str | None] = {}

    @contextlib.contextmanager
    def record(self) -> Iterator[Trace]:
        """Record what this thread calls, except in tasks that were running before."""
        background = asyncio.all_tasks() - {asyncio.current_task()}
        trace = Trace()

        def on_event(frame: FrameType, event: str, _argument: object) -> None:
            if event == "call" and (module := self._module(frame.f_code)) and _running_task() not in background:
                trace.calls.append((module, frame.f_code.co_name))

        sys.setprofile(on_event)
        try:
            yield trace
        finally:
            sys.setprofile(None)

    def _module(self, code: CodeType) -> str | None:
        if code not in self._modules:
            path = Path(code.co_filename)
            inside = path.is_relative_to(self._tree) and path.relative_to(self._tree).parts[0] in self._packages
            self._modules[code] = ".".join(path.relative_to(self._tree).with_suffix("").parts) if inside else None
        return self._modules[code]


def _running_task() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None


@contextlib.asynccontextmanager
async def gateway(backends: Sequence[FakeBackend]) -> AsyncIterator[int]:
    """Serve a gateway in front of `backends` in this event loop; yields its port."""
    import uvicorn

    from gateway.app import SERVER_OPTIONS, create
    from gateway.settings import GatewaySettings

    with tempfile.TemporaryDirectory() as folder:
        catalogue = Path(folder, "models.yaml")
        await asyncio.to_thread(catalogue.write_text, CATALOGUE)
        services = ",".join(f"{backend.name}={backend.url}" for backend in backends)
        settings: dict[str, Any] = {"services": services, "catalogue": catalogue, "log_level": "error"}
        app = create(GatewaySettings(poll_interval=300, **settings))
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, **SERVER_OPTIONS))
        with socket.create_server(("127.0.0.1", 0)) as listener:
            serving = asyncio.create_task(server.serve(sockets=[listener]))
            while not server.started:  # noqa: ASYNC110  # uvicorn has no event for it
                await asyncio.sleep(0.01)
            try:
                yield listener.getsockname()[1]
            finally:
                server.should_exit = True
                await serving


class Client:
    """A kept connection to the gateway."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def chat(self, *, stream: bool) -> None:
        """Send one chat completion and read the response to its end."""
        request: dict[str, Any] = {"model": "traced", "messages": [{"role": "user", "content": "Hi"}]}
        body = json.dumps(request | ({"stream": True} if stream else {})).encode()
        self._writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
        )
        status, *lines = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines if line)
        if " 200 " not in status:
            raise RuntimeError(f"the gateway responded with {status}")
        if "content-length" in headers:
            await self._reader.readexactly(int(headers["content-length"]))
            return
        while size := int(await self._reader.readuntil(b"\r\n"), 16):
            await self._reader.readexactly(size + 2)
        await self._reader.readexactly(2)


async def trace(case: str, tracer: Tracer) -> Trace:
    """Trace one request on a fresh gateway."""
    async with FakeBackend(name="a", model="traced") as a, FakeBackend(name="b", model="traced") as b:
        for backend in (a, b):
            backend.switches.tokens = TOKENS
        async with gateway((a, b)) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            client = Client(reader, writer)
            for stream in (False, True):
                for _ in range(WARM_UP):
                    await client.chat(stream=stream)
            if case == "resumed":
                for backend in (a, b):
                    backend.switches.reset_after, backend.switches.rate = TOKENS - 1, RATE
            waiting = asyncio.create_task(_let_the_other_continue(a, b))
            await asyncio.sleep(SETTLE_S)
            with tracer.record() as recorded:
                await client.chat(stream=case != "fast path")
                await asyncio.sleep(SETTLE_S)
            await waiting
            writer.close()
    return recorded


async def _let_the_other_continue(a: FakeBackend, b: FakeBackend) -> None:
    """Wait until one backend has the next request, then remove the fault from the other."""
    wait = {asyncio.create_task(one.wait_for(len(one.requests) + 1)): other for one, other in ((a, b), (b, a))}
    done, pending = await asyncio.wait(wait, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        wait[task].switches.reset_after = None
    for task in pending:
        task.cancel()


def main() -> None:
    """Trace the cases and print the figures."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.trace", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tree", type=Path, default=Path(__file__).resolve().parents[1], help="checkout to trace")
    parser.add_argument("--packages", default="gateway", help="top-level packages to count, e.g. gateway,kit")
    parser.add_argument("--runs", type=at_least(1), default=5)
    parser.add_argument("--calls", action="store_true", help="print every call")
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    tree = options.tree.resolve()
    sys.path.insert(0, str(tree))
    tracer = Tracer(tree, options.packages.split(","))
    rows: list[tuple[str, int, int]] = []
    for case in CASES:
        traces = [asyncio.run(trace(case, tracer)) for _ in range(options.runs)]
        modules, hops = (statistics.median_low([getattr(one, key) for one in traces]) for key in KEYS)
        rows.append((case, modules, hops))
        if options.calls:
            print(f"{case}:", *(f"    {module}  {function}" for module, function in traces[-1].calls), sep="\n")
    print(table(("case", *KEYS), rows))
    figures = {
        f"{case.replace(' ', '_')}_{key}": n for case, *counts in rows for key, n in zip(KEYS, counts, strict=True)
    }
    print(last_line("trace", figures))


if __name__ == "__main__":
    main()
