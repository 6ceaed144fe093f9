"""`python -m bench.fuzz`: mutated requests against the gateway's protocol, in one process, without a socket.

    python -m bench.fuzz --count 1000000 --shapes 100000 --seed 1

Every case is a connection of its own, fed in pieces. It must raise nothing, log no bug, leave nothing in flight and
respond in HTTP, and the backend must receive only well-formed requests, one at a time. The same seed makes the same
cases.

Then the shapes of requests that keep the event loop busy for longest are searched (`bench.blocking_shapes`): no turn
of the loop may take more than MAX_BLOCKING_S for a request of up to 8 MB.
"""

import argparse
import asyncio
import contextlib
import gc
import random
import re
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import psutil
import structlog
import uvicorn
import uvloop

from bench.blocking_shapes import KINDS, MB, Search
from bench.harness.options import at_least
from bench.harness.report import last_line
from gateway.app import SERVER_OPTIONS, create
from gateway.backends.offers import offer_of_id
from gateway.relay.client_protocol import GatewayProtocol
from gateway.relay.data_plane import RelayContext
from gateway.settings import GatewaySettings
from gateway.upstream.connection import UpstreamConnection
from tests.support.transports import SilentTransport

# Connections that may remain at the end: the last ones, held by callbacks that the loop has not run yet.
MAX_ALIVE = 8
# The longest turn of the loop that a request of MAX_SIZE bytes may cause, in seconds of CPU time.
MAX_BLOCKING_S = 0.1
MAX_SIZE = 8 * MB

BODY = b'{"model":"m","messages":[{"role":"user","content":"Hi"}]}'
FORM = (
    b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\r\n'
    b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n\x00\x01\r\n--b--\r\n'
)


def _post(body: bytes, *headers: bytes, path: bytes = b"/v1/chat/completions") -> bytes:
    lines = [b"POST %b HTTP/1.1" % path, b"Host: localhost", *headers, b"Content-Length: %d" % len(body)]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def _chunked(*pieces: bytes) -> bytes:
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    return b"POST /v1/completions HTTP/1.1\r\nHost: a:1\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"


SEEDS = (
    _post(BODY),
    _post(BODY, b"Content-Type: application/json", b"Authorization: Bearer k", b"x-request-id: r"),
    _post(BODY) + _post(BODY, b"Connection: close"),
    _post(BODY.replace(b'"m"', b'"alias"'), b"Accept-Encoding: gzip", b"X-A: b"),
    _post(BODY, b"Expect: 100-continue"),
    _post(BODY, b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMA"),
    _post(BODY, path=b"http://localhost/v1/chat/completions?a=b"),
    _post(BODY[:-2] + b',"stream":true}'),
    _post(FORM, b"Content-Type: multipart/form-data; boundary=b", path=b"/v1/audio/transcriptions"),
    _post(b"\x1aE\xdf\xa3sound", b"Content-Type: audio/webm", path=b"/transcribe/m"),
    _chunked(BODY),
    _chunked(BODY[:10], BODY[10:20], BODY[20:]) + _chunked(BODY),
    _chunked(BODY)[:-2] + b"X-Trailer: 1\r\n\r\n",
    b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n" + _post(BODY),
    b"POST /v1/embeddings HTTP/1.0\r\nContent-Length: 2\r\n\r\n{}",
    b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n",
)
TOKENS = (
    b"\r\n", b"\n", b"\r", b"\0", b" ", b"\t", b":", b",", b";", b"\x7f", b"\xff", b"%", b"#", b"\r\n\r\n",
    b"0\r\n\r\n", b"1\r\n", b"-1", b"0x1", b"+1", b"99999999999999999999", b"HTTP/1.1", b"HTTP/1.0",
    b"GET / HTTP/1.1\r\n",
    b"Host: localhost\r\n", b"Host: b\r\n", b"Content-Length: 5\r\n", b"content-length: 0\r\n",
    b"Content-Length: 59\r\n",
    b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: gzip, chunked\r\n", b"Transfer-Encoding: identity\r\n",
    b"Connection: close\r\n", b"Connection: keep-alive, host\r\n", b"Expect: 100-continue\r\n", b"Upgrade: x\r\n",
    b"X-A: " + b"a" * 5000 + b"\r\n", b'"model":', b'"stream":true,', b"--b", b"--b--", b"\r\n--b\r\n",
)  # fmt: skip


def mutated(draw: random.Random) -> bytes:
    """Return one case."""
    data = bytearray(draw.choice(SEEDS))
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(len(data) + 1)
        end = min(len(data), at + draw.randint(1, 12))
        kind = draw.randrange(7)
        if kind == 0:
            data[at:end] = b""
        elif kind == 1:
            data[at:at] = draw.choice(TOKENS)
        elif kind == 2:
            data[at:end] = draw.choice(TOKENS)
        elif kind == 3:
            data[at:at] = data[at:end]
        elif kind == 4 and at < len(data):
            data[at] = draw.randrange(256)
        elif kind == 5:
            data[at:] = draw.choice(SEEDS)[draw.randrange(40) :]
        else:
            lines = bytes(data).split(b"\r\n")
            one = draw.randrange(len(lines))
            lines.insert(draw.randrange(len(lines)), lines[one])
            data = bytearray(b"\r\n".join(lines))
        if not data:
            break
    return bytes(data)


# Request headers that a backend may receive: only HTTP that the gateway itself writes.
_REQUEST = re.compile(
    rb"POST /[\x21\x24-\x7e]* HTTP/1\.1\r\n((?:[!#$%&'*+.^_`|~0-9A-Za-z-]+: [\t\x20-\x7e\x80-\xff]*\r\n)+)\r\n"
)
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"
STREAM = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"
)


class Backend(SilentTransport):
    """The far end of a backend connection: accepts one complete request at a time and responds at once."""

    def __init__(self) -> None:
        super().__init__()
        self.connection: UpstreamConnection | None = None
        # How much of the present body is missing, -1 between two requests; whether it asks for a stream.
        self._left = -1
        self._streams = False
        self.answered = 0

    def write(self, data: Any) -> None:
        """Check the bytes of a request. Raises AssertionError."""
        data = bytes(data)
        self._left = self._body_length(data) if self._left < 0 else self._left - len(data)
        if self._left < 0:
            raise AssertionError(f"the backend got more than one request: {data!r}")
        self._streams |= b'"stream":true' in data
        if self._left == 0:
            answer = STREAM if self._streams else ANSWER
            self._left, self._streams = -1, False
            self.answered += 1
            assert self.connection is not None
            asyncio.get_running_loop().call_soon(self.connection.data_received, answer)

    @staticmethod
    def _body_length(data: bytes) -> int:
        """Return how much of the body is missing after the first bytes of a request. Raises AssertionError."""
        match = _REQUEST.match(data)
        if match is None:
            raise AssertionError(f"the backend got a malformed request: {data!r}")
        fields = [line.partition(b": ") for line in match[1].lower().split(b"\r\n")]
        names = [name for name, _, _ in fields]
        if names.count(b"host") != 1 or names.count(b"content-length") != 1 or b"transfer-encoding" in names:
            raise AssertionError(f"the backend got an ambiguous request: {data!r}")
        return int(next(value for name, _, value in fields if name == b"content-length")) - (len(data) - match.end())


class Fuzz:
    """The gateway under test."""

    def __init__(self, server: uvicorn.Server, context: RelayContext, draw: random.Random) -> None:
        self._server = server
        self._context = context
        self._backend = next(iter(context.backends))
        self._draw = draw
        self._far = Backend()
        self.bugs: list[Any] = []
        self.answered = 0

    async def case(self, data: bytes) -> None:
        """Feed one connection and end it. Raises AssertionError, or whatever the protocol raises."""
        transport = SilentTransport()
        protocol = self.connect(transport)
        cuts = sorted(self._draw.randrange(len(data) + 1) for _ in range(self._draw.randrange(3)))
        for begin, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
            if end > begin and not transport.closed:
                protocol.data_received(data[begin:end])
                await self.settle()
        protocol.connection_lost(None)
        await self.settle()
        answer = b"".join(transport.written)
        self.answered += bool(answer)
        assert not answer or answer.startswith(b"HTTP/1.1 "), answer
        assert self._context.metrics.relaying == 0, "a request is still counted as being relayed"
        assert self._backend.traffic.in_flight == 0, "a request is still counted as in flight"
        assert not self._context.connections, "the connection is still there"
        assert self._context.memory.in_use == 0, "memory is still counted"
        assert not self.bugs, self.bugs

    def connect(self, transport: SilentTransport) -> Any:
        """Return the protocol of a new client connection; an idle connection to the backend is there."""
        self._supply()
        config = self._server.config
        make: Callable[..., Any] = config.http_protocol_class
        protocol = make(config=config, server_state=self._server.server_state, app_state=self._server.lifespan.state)
        protocol.connection_made(transport)
        return protocol

    def _supply(self) -> None:
        if self._backend.pool.idle_count == 0:
            far = self._far = Backend()
            connection = far.connection = UpstreamConnection(self._backend.pool)
            connection.connection_made(far)
            self._backend.pool.put(connection)

    async def settle(self) -> None:
        """Run the loop until the gateway waits for the client."""
        for _ in range(3):
            await asyncio.sleep(0)
        tasks = self._server.server_state.tasks
        for _ in range(200):
            if not any(task for task in tasks if not task.done()):
                return
            await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def fuzzing(seed: int) -> AsyncIterator[Fuzz]:
    """Create a gateway with one backend that is always healthy."""
    with tempfile.TemporaryDirectory() as folder:
        catalogue = Path(folder) / "models.yaml"
        catalogue.write_text("m: {kind: llm, hf_repo: a/m, revision: main, aliases: [alias]}\n")
        given: dict[str, Any] = {"services": "fuzz=http://127.0.0.1:9", "catalogue": catalogue, "poll_interval": 300}
        settings = GatewaySettings(**given, log_level="error")
        config = uvicorn.Config(create(settings), log_config=None, access_log=False, **SERVER_OPTIONS)
        config.load()
        server = uvicorn.Server(config)
        server.lifespan = config.lifespan_class(config)
        await server.lifespan.startup()
        context: RelayContext = server.lifespan.state["context"]
        backend = next(iter(context.backends))
        backend.set_offers(tuple(offer_of_id("m", None, kind) for kind in ("llm", "transcription", "embedding")))
        backend.observe("healthy")
        fuzz = Fuzz(server, context, random.Random(seed))

        def only_errors(_: Any, name: str, event: Any) -> Any:
            if name in ("error", "exception", "critical"):
                fuzz.bugs.append(event)
            raise structlog.DropEvent

        before = structlog.get_config()["processors"]
        structlog.configure(processors=[only_errors])
        try:
            yield fuzz
        finally:
            structlog.configure(processors=before)
            await server.lifespan.shutdown()


async def run(count: int, seed: int, *, show: bool = False) -> dict[str, float | int | None]:
    """Feed `count` cases. Raises AssertionError that names the case."""
    draw = random.Random(seed)
    process = psutil.Process()
    held = 0
    began = time.monotonic()
    async with fuzzing(seed) as fuzz:
        for index in range(count):
            data = mutated(draw)
            try:
                await fuzz.case(data)
            except BaseException as error:
                raise AssertionError(f"case {index} of seed {seed}, {data!r}: {error!r}") from error
            if index == count // 5:
                gc.collect()
                held = process.memory_info().rss
            if show and index % (count // 20 or 1) == 0:
                print(f"{index:>9,} cases, {fuzz.answered:,} answered, {time.monotonic() - began:.0f} s", flush=True)
        gc.collect()
        alive = sum(isinstance(one, GatewayProtocol) for one in gc.get_objects())
        assert alive <= MAX_ALIVE, f"{alive} connections that have ended are still held"
        grown = (process.memory_info().rss - held) / 2**20
        seconds = time.monotonic() - began
        return {"cases": count, "answered": fuzz.answered, "seconds": seconds, "rss_growth_mb": grown}


async def search(count: int, seed: int, *, show: bool = False) -> dict[str, float]:
    """Search through `count` shapes; return the longest turn of the loop at MAX_SIZE for each kind, in seconds."""
    began = time.monotonic()
    async with fuzzing(seed) as fuzz:
        shapes = Search(fuzz.connect, fuzz.settle, seed)
        for _ in range(20):
            await shapes.run(count // 20)
            if show:
                print(f"{shapes.shapes:>9,} shapes, {time.monotonic() - began:.0f} s", flush=True)
        worst: dict[str, float] = {}
        for kind in KINDS:
            worst[kind], shape = await shapes.worst(kind, MAX_SIZE)
            if show:
                print(f"{kind}: {worst[kind] * 1000:.0f} ms for {shape}", flush=True)
        return worst


def main() -> None:
    """Run and print the figures; exit with 1 if a case failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=at_least(1), default=1_000_000)
    parser.add_argument("--shapes", type=at_least(1000), default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    try:
        figures = uvloop.run(run(options.count, options.seed, show=True))
    except AssertionError as error:
        print(error)
        sys.exit(1)
    worst = uvloop.run(search(options.shapes, options.seed, show=True))
    blocking = {f"{kind.replace(' ', '_')}_ms": seconds * 1000 for kind, seconds in worst.items()}
    print(last_line("fuzz", figures | {"shapes": options.shapes} | blocking))
    if max(worst.values()) > MAX_BLOCKING_S:
        print(f"A request of {MAX_SIZE // MB} MB keeps the loop busy for more than {MAX_BLOCKING_S * 1000:.0f} ms.")
        sys.exit(1)


if __name__ == "__main__":
    main()
