"""A search for the requests that keep the gateway's event loop busy for longest: JSON, forms, chunks, heads, pipelines.

A shape is repeated to any size. Small ones are changed at random, and those that take the most CPU time per byte are
changed further; the worst of each kind is then measured at full size. What counts is a turn of the loop, as uvloop
makes it: a connection's protocol gets up to 32 reads before any other one's turn comes, unless it pauses reading.
CPU time of the thread, not time on the clock: other programs do not count.
"""

import asyncio
import dataclasses
import gc
import random
import time
from collections.abc import Callable
from typing import Any, Literal

from gateway.bodies.json_scan import MAX_DECODED
from gateway.endpoints import ENDPOINTS
from tests.support.transports import SilentTransport

Kind = Literal["json", "large json", "form", "head", "pipeline"]
KINDS: tuple[Kind, ...] = ("json", "large json", "form", "head", "pipeline")

# One read of uvloop, in bytes, and the most reads in one turn (libuv, uv__read).
READ = 256_000
READS = 32
# The sizes at which shapes are compared, and at which the worst are measured, in bytes.
SMALL = 8 * 1024
MB = 1024 * 1024
# The rest of a request is not measured after so much CPU time, in seconds: a pipeline's next thousand requests are like
# the ones before.
MAX_MEASURED_S = 2.0
# The longest unit that is repeated, in bytes.
MAX_UNIT = 96
# How many of the worst shapes of each kind are changed further.
KEPT = 12
# How many of every hundred shapes are of each kind: heads are short, and pipelines take long.
_SHARES: dict[Kind, int] = {"json": 32, "large json": 32, "form": 28, "head": 4, "pipeline": 4}

# The beginning of a body that is too large to be decoded at once.
_TEXT = b'{"a":"' + b"a" * MAX_DECODED + b'",'
_PATHS = {
    body_kind: [endpoint.path.encode() for endpoint in ENDPOINTS if endpoint.body_kind == body_kind]
    for body_kind in ("json", "form")
}
_JSON_TOKENS = (
    b"{", b"}", b"[", b"]", b",", b":", b'"', b"\\", b"{}", b"[]", b'""', b"{},", b"[],", b'"a":1,', b'"":', b"1",
    b"-1e5,", b"null,", b" ", b"\n", b"\\\\", b'\\"', b"\\u00e9", "é".encode(), b"\xff", b'"type":', b'"image",',
    b'"image_url"', b'{"type":"image"},', b'{"content":[]},', b'"content":[', b'"role":"user",', b"[[[[[[[[[",
    b"]]]]]]]]]",
)  # fmt: skip
_JSON_STARTS = (
    b'"messages":[', b'"messages":[{"content":[', b'"input":[', b'"input":"', b'"prompt":"', b'"model":"',
    b'"tools":[{', b'"user":', b'"b":', b"", b'"stream":[', b'"model":"alias","messages":[',
)  # fmt: skip
_FORM_TOKENS = (
    b"\r\n", b"\r\n--b", b"\r\n--b\r\n", b"--b--", b"--", b"\r\n\r\n", b"-", b";", b'"', b"\\", b"=", b"a", b":", b" ",
    b"Content-Disposition: form-data", b'; name="model"', b"; name=stream", b';a="', b'filename="\\"', b"x: y\r\n",
)  # fmt: skip
_FORM_STARTS = (
    b"", b"--b\r\n\r\n", b"--b\r\nContent-Disposition: form-data", b"--b\r\na: ",
    b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\n',
)  # fmt: skip
_HEAD_TOKENS = (
    b"\r\n", b": ", b":", b",", b";", b" ", b"\t", b"a", b"A: b\r\n", b"_", b"Connection: ", b"X-Session-Id: a\r\n",
    b"close, ", b"Content-Type: multipart/form-data; boundary=", b"Upgrade: h2c\r\n", b"Cookie: a=b\r\n", b"%", b"\xe9",
)  # fmt: skip
_PIPELINE_TOKENS = (
    b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n", b"\r\n", b"x",
    b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}", b"GET /a HTTP/1.0\r\n\r\n",
    b"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n \r\n0\r\n\r\n",
    b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n", b"Connection: close\r\n", b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
    b"POST /explain HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}",
)  # fmt: skip
_TOKENS = {
    "json": _JSON_TOKENS, "large json": _JSON_TOKENS, "form": _FORM_TOKENS, "head": _HEAD_TOKENS,
    "pipeline": _PIPELINE_TOKENS,
}  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True)
class Shape:
    """Bytes of any size: `start`, then `unit` again and again, then an end. `chunk` is the size of chunks, if any."""

    kind: Kind
    path: bytes
    start: bytes
    unit: bytes
    chunk: int = 0

    def data(self, size: int) -> tuple[bytes, bytes]:
        """Return the bytes that only prepare, and those to measure: `size` of them, or a few more for their framing."""
        if self.chunk:
            size = size * self.chunk // (self.chunk + len(b"%x\r\n\r\n" % self.chunk))
        units = self.unit * (max(size - len(self.start), 0) // len(self.unit))
        if self.kind == "pipeline":
            return b"", units
        line = b"POST %b HTTP/1.1\r\nHost: a\r\n" % self.path
        if self.kind == "head":
            return b"", line + self.start + units + b"\r\n\r\n"
        before = {"json": b"{", "large json": _TEXT, "form": b""}[self.kind]
        if self.kind == "form":
            line += b"Content-Type: multipart/form-data; boundary=b\r\n"
        body = self.start + units + (b"\r\n--b--\r\n" if self.kind == "form" else _json_end(self.start, self.unit))
        if not self.chunk:
            return line + b"Content-Length: %d\r\n\r\n" % (len(before) + len(body)) + before, body
        chunks = [body[at : at + self.chunk] for at in range(0, len(body), self.chunk)]
        framed = b"".join([b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks]) + b"0\r\n\r\n"
        first = b"%x\r\n%b\r\n" % (len(before), before) if before else b""
        return line + b"Transfer-Encoding: chunked\r\n\r\n" + first, framed

    def __str__(self) -> str:
        return f"{self.path.decode()} {self.start!r} + {self.unit!r} * n" + (
            f" in chunks of {self.chunk}" * bool(self.chunk)
        )


def _json_end(start: bytes, unit: bytes) -> bytes:
    """Return what makes an object of a start with as many units as one likes, if its brackets are balanced."""
    stack, in_string = [b"}"], False
    for byte in (start + unit).replace(b"\\\\", b"").replace(b'\\"', b""):
        if byte == ord('"'):
            in_string = not in_string
        elif not in_string and byte in b"{[":
            stack.append(b"}" if byte == ord("{") else b"]")
        elif not in_string and byte in b"}]" and stack:
            stack.pop()
    end = (
        b'"'
        if in_string
        else b'"a":{}'
        if unit.endswith(b",") and stack[-1:] == [b"}"]
        else b"{}" * unit.endswith(b",")
    )
    return end + b"".join(reversed(stack))


def random_shape(kind: Kind, draw: random.Random) -> Shape:
    """Return a shape of one or two tokens."""
    unit = b"".join(draw.choices(_TOKENS[kind], k=draw.randint(1, 2)))
    starts = {"form": _FORM_STARTS, "json": _JSON_STARTS, "large json": _JSON_STARTS}.get(kind, (b"",))
    path = draw.choice(_PATHS["form" if kind == "form" else "json"])
    return Shape(kind, path, draw.choice(starts), unit, _random_chunk(kind, draw))


def changed(shape: Shape, draw: random.Random) -> Shape:
    """Return a similar shape."""
    unit = bytearray(shape.unit)
    at = draw.randrange(len(unit) + 1)
    end = min(len(unit), at + draw.randint(1, 8))
    step = draw.randrange(8)
    if step == 0:
        unit[at:at] = draw.choice(_TOKENS[shape.kind])
    elif step == 1:
        unit[at:end] = draw.choice(_TOKENS[shape.kind])
    elif step == 2:
        unit[at:end] = b""
    elif step == 3:
        unit[at:at] = unit[at:end]
    elif step == 4 and shape.kind != "pipeline":
        unit[at:end] = bytes([draw.randrange(256)])
    elif step == 5:
        return dataclasses.replace(shape, start=random_shape(shape.kind, draw).start)
    elif step == 6:
        return dataclasses.replace(shape, chunk=_random_chunk(shape.kind, draw))
    else:
        return dataclasses.replace(shape, path=random_shape(shape.kind, draw).path)
    return dataclasses.replace(shape, unit=bytes(unit[:MAX_UNIT]) or shape.unit)


def _random_chunk(kind: Kind, draw: random.Random) -> int:
    return 0 if kind in ("head", "pipeline") else draw.choice((*[0] * 9, 1, 2, 7, 64, 1000, 20_000))


class Search:
    """The search, on connections that `connect` makes; `settle` waits until the gateway waits for the client."""

    def __init__(self, connect: Callable[[SilentTransport], Any], settle: Callable[[], Any], seed: int) -> None:
        self._connect = connect
        self._settle = settle
        self._draw = random.Random(seed)
        # The worst shapes of each kind, with their CPU time per byte at SMALL, worst first.
        self._worst: dict[Kind, list[tuple[float, Shape]]] = {kind: [] for kind in KINDS}
        self.shapes = 0

    async def blocking_s(self, shape: Shape, size: int) -> float:
        """Return the CPU time of the longest turn of the loop while the shape arrives, in seconds."""
        preparation, data = shape.data(size)
        transport = SilentTransport()
        protocol = self._connect(transport)
        for start in range(0, len(preparation), READ // 2):
            await self._turn(protocol, transport, preparation[start : start + READ // 2])
        at, longest, total = 0, 0.0, 0.0
        while at < len(data) and total < MAX_MEASURED_S and not transport.closed:
            spent, at = await self._turn(protocol, transport, data, at)
            longest, total = max(longest, spent), total + spent
        began = time.thread_time()
        protocol.connection_lost(None)
        await asyncio.sleep(0)
        longest = max(longest, time.thread_time() - began)
        await self._settle()
        return longest

    async def _turn(self, protocol: Any, transport: SilentTransport, data: bytes, at: int = 0) -> tuple[float, int]:
        """Let the loop make one turn; return its CPU time, and how far it has read."""
        reads = [data[start : start + READ] for start in range(at, min(len(data), at + READS * READ), READ)]
        began = time.thread_time()
        for read in reads:
            if not transport.reading or transport.closed:
                break
            protocol.data_received(read)
            at += len(read)
        await asyncio.sleep(0)
        return time.thread_time() - began, at

    async def run(self, count: int) -> None:
        """Try `count` more shapes."""
        gc.collect()
        gc.disable()  # its pauses would be those of whichever shape comes next
        try:
            for kind in self._draw.choices(KINDS, [_SHARES[kind] for kind in KINDS], k=count):
                await self._try(kind)
        finally:
            gc.enable()

    async def _try(self, kind: Kind) -> None:
        worst, draw = self._worst[kind], self._draw
        shape = (
            changed(draw.choice(worst)[1], draw)
            if len(worst) == KEPT and draw.random() < 0.9
            else random_shape(kind, draw)
        )
        self.shapes += 1
        per_byte = await self.blocking_s(shape, SMALL) / SMALL
        if len(worst) == KEPT and per_byte <= worst[-1][0]:
            return
        # A second time: the first may have been disturbed.
        per_byte = min(per_byte, await self.blocking_s(shape, SMALL) / SMALL)
        if all(shape != other for _, other in worst):
            worst.append((per_byte, shape))
            worst.sort(key=lambda one: -one[0])
            del worst[KEPT:]

    async def worst(self, kind: Kind, size: int) -> tuple[float, Shape]:
        """Return the longest turn that a shape of this kind causes at `size`, in seconds, and the shape.

        Of the three worst small shapes, each measured twice: the first time may have been disturbed.
        """
        found = [
            (min([await self.blocking_s(shape, size) for _ in range(2)]), shape) for _, shape in self._worst[kind][:3]
        ]
        return max(found, key=lambda one: one[0])
