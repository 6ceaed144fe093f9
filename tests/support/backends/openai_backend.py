"""A fake OpenAI backend with faults on request: slow, failing, hanging, cut, malformed. A program and a fixture.

    python -m bench.backend --port 9001 --model tiny --ttft 0.05 --rate 50

In a test: `async with FakeBackend(model="tiny") as backend: ...`. `backend.switches` may change at any time, also
over HTTP (`POST /_switches {"ttft": 1}`); `backend.requests` holds the requests. HTTP is written by hand, to break it.
"""

import argparse
import asyncio
import contextlib
import dataclasses
import json
import os
import random
import socket
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.support.backends.responses import ENGINE_DIED, BadRequest, form_field, generation, gpu_stats, whole_answer
from tests.support.backends.switches import Switches

REASONS = {
    200: "OK",
    404: "Not Found",
    429: "Too Many Requests",
    500: "Internal Server Error",
    503: "Service Unavailable",
}


@dataclass
class Received:
    """One request as received."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes
    connection: int
    # Whether processing has started, with the switches of that moment.
    begun: bool = False
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    def header(self, name: str) -> str | None:
        """Return the header's value, or None."""
        return next((value for key, value in self.headers if key == name.lower()), None)

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


class _Cut(Exception):
    """Reset the connection now."""


class FakeBackend:
    """The server. `async with` starts it on a free port (or the given one) and stops it."""

    def __init__(self, port: int = 0, *, name: str = "fake", host: str = "127.0.0.1", **switches: Any) -> None:
        self.name = name
        self.host = host
        self.port = port
        self.switches = Switches(**switches)
        self.requests: list[Received] = []
        self.polls = 0
        self.gpu_questions = 0
        self.looks = 0
        self.opened = 0
        self.open: set[asyncio.StreamWriter] = set()
        self.gate = asyncio.Semaphore(0)
        self._server: asyncio.Server | None = None
        self._arrived = asyncio.Condition()
        self._tasks: set[asyncio.Task[None]] = set()
        # Called by a query of death; the program exits instead.
        self.crash: Callable[[], None] = self._stop_soon
        self._stopping: asyncio.Task[None] | None = None
        # Connections that have carried an inference request; health checks do not count.
        self.work_connections: set[int] = set()

    @property
    def url(self) -> str:
        """Base URL."""
        return f"http://{self.host}:{self.port}"

    async def __aenter__(self) -> "FakeBackend":
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen."""
        self._server = await asyncio.start_server(self._serve, self.host, self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Stop as if killed: free the port and reset every connection."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in list(self.open):
            _reset(writer)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _stop_soon(self) -> None:
        self._stopping = asyncio.create_task(self.stop())

    async def wait_for(self, count: int) -> list[Received]:
        """Wait until `count` inference requests have arrived; return them."""
        async with self._arrived:
            await self._arrived.wait_for(lambda: len(self.requests) >= count)
        return self.requests

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.opened += 1
        number = self.opened
        self.open.add(writer)
        try:
            while await self._one(reader, writer, number):
                pass
        except _Cut:
            _reset(writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self.open.discard(writer)
            self._tasks.discard(task)
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> bool:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return False
        first, *lines = head[:-4].decode("latin-1").split("\r\n")
        method, target, _ = first.split(" ")
        headers = [(name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in lines)]
        if self.switches.reset_reused and number in self.work_connections:
            raise _Cut
        length = int(dict(headers).get("content-length", "0"))
        request = Received(method, target, headers, await reader.readexactly(length), number)
        if method == "GET" or target.startswith("/_"):
            self.polls += 1
            await self._answer_get(request, writer)
            return self.switches.framing != "close"
        self.work_connections.add(number)
        self.requests.append(request)
        async with self._arrived:
            self._arrived.notify_all()
        watch = asyncio.create_task(_until_gone(reader, request.gone))
        work = asyncio.create_task(self._work(request, writer))
        try:
            await asyncio.wait((watch, work), return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                return False
            await work
            return not (self.switches.close_idle or self.switches.framing == "close" or request.gone.is_set())
        finally:
            for task in (watch, work):
                task.cancel()
            await asyncio.gather(watch, work, return_exceptions=True)

    # Health checks and other GETs.

    async def _answer_get(self, request: Received, writer: asyncio.StreamWriter) -> None:
        path, now = request.target.partition("?")[0], self.switches
        if path == "/_switches":
            self.switches = dataclasses.replace(now, **request.json)
            await self._json(writer, 200, dataclasses.asdict(self.switches))
        elif path == "/_seen":
            seen = {"requests": len(self.requests), "opened": self.opened, "open": len(self.open), "polls": self.polls}
            await self._json(writer, 200, seen)
        elif path == "/health":
            await self._answer_health(writer)
        elif path == "/v1/models" and not self._has_key(request):
            await self._json(writer, 401, {"error": "Unauthorized"})
        elif path == "/v1/models":
            fields = {"owned_by": now.engine} | json.loads(now.model_fields)
            await self._json(
                writer, 200, {"object": "list", "data": [{"id": one} | fields for one in now.model.split("|")]}
            )
        elif path == "/metrics" and now.counts == "silent":
            await asyncio.Event().wait()
        elif path == "/metrics" and now.counts != "no":
            self.looks += 1
            grown = self.looks if now.counts == "steps" else 1
            name = "embedding_computed_tokens_total" if now.counts == "pieces" else "vllm:generation_tokens_total"
            page = (
                f'# TYPE x counter\n{name}{{model_name="x"}} {grown}\nvllm:num_requests_waiting{{}} {now.waiting}.0\n'
            )
            await self._plain(writer, 200, page.encode(), "text/plain")
        elif path == "/gpu-stats":
            self.gpu_questions += 1
            if now.gpus == "silent":
                await asyncio.Event().wait()
            await self._json(writer, 200, gpu_stats(self.name))
        else:
            await self._json(writer, 404, {"detail": "Not Found"})

    def _has_key(self, request: Received) -> bool:
        return not self.switches.key or request.header("authorization") == f"Bearer {self.switches.key}"

    async def _answer_health(self, writer: asyncio.StreamWriter) -> None:
        now = self.switches
        ours: dict[str, Any] = {"service": self.name, "kind": now.kind, "model": now.model, "engine": now.engine}
        ours |= json.loads(now.model_fields)
        if now.health == "silent":
            await asyncio.Event().wait()
        elif now.health == "absent":
            await self._json(writer, 404, {"detail": "Not Found"})
        elif now.health == "error":
            await self._json(writer, 500, {})
        elif now.health == "forbidden":
            await self._json(writer, 403, {"error": {"message": "not for you"}})
        elif now.health == "loading":
            body = ours | {"status": "loading", "progress": now.progress, "detail": now.detail}
            await self._json(writer, 503, body if now.ours else {"error": {"message": "Loading model"}})
        elif now.health == "failed":
            await self._json(writer, 503, ours | {"status": "failed", "detail": "no such file"})
        elif now.ours:
            await self._json(writer, 200, ours | {"status": "healthy"})
        else:
            await self._plain(writer, 200, b"", "text/plain")

    # Inference.

    async def _work(self, request: Received, writer: asyncio.StreamWriter) -> None:
        now = self.switches
        request.begun = True
        if now.crash_on and now.crash_on.encode() in request.body:
            self.crash()
            raise _Cut
        if now.reset:
            raise _Cut
        if now.garbage:
            writer.write(b"\x00\x01 this is not HTTP\r\n\r\n")
            await writer.drain()
            return
        if now.hang:
            await asyncio.Event().wait()
        if now.interim:
            writer.write(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n")
        if not self._has_key(request):
            await self._json(writer, 401, {"error": {"message": "wrong key"}}, work=True)
            return
        if now.fail_rate and random.random() < now.fail_rate:
            error = {"error": {"message": now.fail_message, "code": "fail"}}
            more = f"Retry-After: {now.retry_after}\r\n" if now.retry_after else ""
            await self._json(writer, now.fail_status, error, work=True, more=more)
            return
        form = (request.header("content-type") or "").startswith("multipart/")
        asked = {"model": form_field(request.body, b"model")} if form else request.json
        known = {now.model, *now.aliases.split("|"), None} if now.ours else set(now.model.split("|"))
        if asked.get("model") not in known:
            missing = f"The model `{asked.get('model')}` does not exist."
            await self._json(writer, 404, {"error": {"message": missing, "type": "NotFoundError"}}, work=True)
            return
        try:
            if asked.get("stream"):
                await self._stream(request, asked, writer)
                return
            most = asked.get("max_tokens")
            tokens = min(now.tokens, most) if isinstance(most, int) else now.tokens
            await asyncio.sleep(now.ttft + (tokens / now.rate if now.rate else 0))
            await self._json(writer, 200, whole_answer(request.target, request.body, asked, now), work=True)
        except BadRequest as error:
            wrong = {"message": str(error), "type": "BadRequestError", "param": None, "code": 400}
            await self._json(writer, 400, {"error": wrong}, work=True)

    async def _stream(self, request: Received, asked: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        now = self.switches
        said = generation(request.target.partition("?")[0], asked, now)
        head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nX-Served-By: forged\r\n"
        chunked = now.framing != "close" and not now.stream_length
        if now.stream_length:
            head += f"Content-Length: {now.stream_length}\r\n\r\n"
        else:
            head += "Transfer-Encoding: chunked\r\n\r\n" if chunked else "Connection: close\r\n\r\n"
        await self._head(writer, head, work=True)
        frame: Callable[[bytes], bytes] = (lambda data: b"%x\r\n%b\r\n" % (len(data), data)) if chunked else bytes
        await asyncio.sleep(now.ttft)
        opening = said.opening()
        for index in range(said.first, said.last):
            if now.gated:
                await self.gate.acquire()
            if now.hang_after == index:
                await asyncio.Event().wait()
            if now.reset_after == index:
                # Half an event first: a proxy must not forward it.
                writer.write(frame(b'data: {"id": "ha'))
                await writer.drain()
                raise _Cut
            if now.tell_after == index:
                writer.write(frame(ENGINE_DIED))
                break
            # As in vLLM, the role comes together with the first token.
            writer.write(frame(opening + said.event(index)))
            opening = b""
            await writer.drain()
            if now.rate:
                await asyncio.sleep(1 / now.rate)
        if now.hang_after == said.last:
            await asyncio.Event().wait()
        if now.reset_after == said.last:
            raise _Cut
        if now.tell_after is None:
            writer.write(frame(opening + said.ending()))
        if chunked:
            writer.write(b"0\r\n\r\n")
        await writer.drain()

    async def _json(
        self, writer: asyncio.StreamWriter, status: int, body: Any, *, work: bool = False, more: str = ""
    ) -> None:
        await self._plain(writer, status, json.dumps(body).encode(), "application/json", work=work, more=more)

    async def _plain(
        self, writer: asyncio.StreamWriter, status: int, body: bytes, media: str, *, work: bool = False, more: str = ""
    ) -> None:
        framing = self.switches.framing
        head = f"HTTP/1.1 {status} {REASONS.get(status, 'Other')}\r\nContent-Type: {media}\r\n{more}"
        head += "x-backend: fake\r\nx-served-by: forged\r\nx-request-id: forged\r\nKeep-Alive: timeout=5\r\n"
        if framing == "chunked":
            head += "Transfer-Encoding: chunked\r\n\r\n"
            middle = len(body) // 2
            pieces = [piece for piece in (body[:middle], body[middle:]) if piece]
            body = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
        elif framing == "close":
            head += "Connection: close\r\n\r\n"
        else:
            head += f"Content-Length: {len(body)}\r\n\r\n"
        await self._head(writer, head, work=work)
        writer.write(body)
        await writer.drain()

    async def _head(self, writer: asyncio.StreamWriter, head: str, *, work: bool) -> None:
        if not (work and self.switches.slow_head):
            writer.write(head.encode())
            return
        for character in head.encode():
            writer.write(bytes((character,)))
            await writer.drain()
            await asyncio.sleep(self.switches.slow_head / len(head))


async def _until_gone(reader: asyncio.StreamReader, gone: asyncio.Event) -> None:
    """Return when the peer has closed its side. It may send nothing else during a response."""
    with contextlib.suppress(ConnectionError):
        await reader.read(1)
    gone.set()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with a reset, as when a process is killed with unread data."""
    raw = writer.get_extra_info("socket")
    if raw is not None:
        with contextlib.suppress(OSError):
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def main(arguments: list[str]) -> None:
    """Serve until interrupted, with the switches of the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.backend", description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--name", default="fake")
    for one in dataclasses.fields(Switches):
        flag = "--" + one.name.replace("_", "-")
        if isinstance(one.default, bool):
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=one.default)
        else:
            kind = int if one.default is None else type(one.default)
            parser.add_argument(flag, type=kind, default=one.default)
    options = vars(parser.parse_args(arguments))

    async def serve() -> None:
        async with FakeBackend(options.pop("port"), name=options.pop("name"), **options) as backend:
            backend.crash = lambda: os._exit(1)
            print(f"listening on {backend.url}", flush=True)
            await asyncio.Event().wait()

    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve())


if __name__ == "__main__":
    main(sys.argv[1:])
