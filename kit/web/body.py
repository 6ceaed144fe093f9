"""Request bodies within limits: encoding, size in bytes, minimum rate, and memory of all bodies together."""

import asyncio
import contextlib
import io
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kit.errors import Busy, PayloadTooLarge, RequestTimeout, UnsupportedEncoding

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class MinBodyRate:
    """Minimum rate of a body: `bytes_per_s`, on average over each `grace_s` seconds.

    Stops stalled clients and slow-loris attacks, also those that begin fast; a slow link passes.
    """

    grace_s: float = 30.0
    bytes_per_s: int = 16 * 1024

    @property
    def window(self) -> float:
        """The bytes that must arrive within `grace_s` seconds."""
        return self.grace_s * self.bytes_per_s


DEFAULT_MIN_RATE = MinBodyRate()


def encoding_refusal(content_encoding: str | None) -> UnsupportedEncoding | None:
    """Return a 415 if the body is compressed, by its `Content-Encoding` header."""
    if content_encoding is None or content_encoding.strip().lower() in ("", "identity"):
        return None
    return UnsupportedEncoding(content_encoding)


class BodyLimit:
    """ASGI middleware that limits all bodies to `limit_mb` MiB.

    FastAPI reads the body before it runs dependencies, so a check in a route would be too late.
    """

    def __init__(self, app: ASGIApp, *, limit_mb: int) -> None:
        self._app = app
        self._limit_mb = limit_mb

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection scope. The error is raised from `receive`, inside the error handlers."""
        if scope["type"] == "http":
            refusal = PayloadTooLarge(
                f"The request is larger than {self._limit_mb} MiB. No route here accepts that much."
            )
            receive = _limited(receive, Headers(scope=scope), self._limit_mb * MIB, refusal, DEFAULT_MIN_RATE)
        await self._app(scope, receive, send)


class BodyMemory:
    """Memory budget for all request bodies of a process, `limit_mb` MiB; `setting` is its variable."""

    def __init__(self, limit_mb: int, *, setting: str) -> None:
        self._free = limit_mb * MIB
        self._limit_mb = limit_mb
        self._setting = setting

    @contextlib.asynccontextmanager
    async def holding(self, request: Request) -> AsyncIterator[bytes]:
        """Read the body of `request`; it counts against the budget until the block ends.

        Raises Busy if the budget is exhausted.
        """
        held = 0
        # It takes the length of the pieces only, however small they are, and returns them without a copy.
        buffer = io.BytesIO()
        try:
            async for piece in request.stream():
                if len(piece) > self._free:
                    raise Busy(
                        f"The request bodies in memory have reached {self._setting}, {self._limit_mb} MiB. "
                        "Try again shortly."
                    )
                self._free -= len(piece)
                held += len(piece)
                buffer.write(piece)
            yield buffer.getvalue()
        finally:
            self._free += held


def limited(request: Request, *, limit_mb: int, setting: str, min_rate: MinBodyRate = DEFAULT_MIN_RATE) -> Request:
    """Return `request` with its body limited to `limit_mb` MiB; call it before the body is read.

    Reading it raises PayloadTooLarge, by the Content-Length or the received bytes, whose message names `setting`, and
    RequestTimeout if it arrives slower than `min_rate`.
    """
    refusal = PayloadTooLarge(f"The request is larger than {limit_mb} MiB. Send less, or raise {setting}.")
    return Request(request.scope, _limited(request.receive, request.headers, limit_mb * MIB, refusal, min_rate))


def _limited(
    receive: Receive, headers: Headers, limit: int, refusal: PayloadTooLarge, min_rate: MinBodyRate
) -> Receive:
    """Wrap `receive`: raise `refusal` over the limit, RequestTimeout below the minimum rate."""
    received = 0
    complete = False
    declared = headers.get("content-length", "")
    declares_more = declared.isdigit() and int(declared) > limit
    began = time.monotonic()
    # The present window of the minimum rate: its end, and how many bytes must have arrived by then.
    ends, due = began + min_rate.grace_s, min_rate.window

    async def receive_within_limit() -> Message:
        nonlocal received, complete, ends, due
        if declares_more:
            raise refusal
        if complete:  # the next message is http.disconnect
            return await receive()
        try:
            async with asyncio.timeout(ends - time.monotonic()):
                message = await receive()
        except TimeoutError as error:
            raise RequestTimeout(
                f"Only {received} bytes of the body arrived in {time.monotonic() - began:.0f} seconds. Send it faster."
            ) from error
        received += len(message.get("body", b""))
        if received >= due:
            ends, due = time.monotonic() + min_rate.grace_s, received + min_rate.window
        complete = not message.get("more_body", False)
        if received > limit:
            raise refusal
        return message

    return receive_within_limit
