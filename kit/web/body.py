"""Reading a request's body within limits: how long it is, whatever its Content-Length claims, how slowly it comes, and
how much of all bodies is held at once."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kit.errors import Busy, PayloadTooLarge, RequestTimeout

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class MinBodyRate:
    """How slowly a body may come: `grace_s` seconds, and one more for every `bytes_per_s` that came.

    A client that stalls, or sends a byte now and then, uses the time up; one on a slow line does not.
    """

    grace_s: float = 30.0
    bytes_per_s: int = 16 * 1024

    def seconds_for(self, came: int) -> float:
        """Seconds after the request's head until which more than `came` bytes must be there."""
        return self.grace_s + came / self.bytes_per_s


PACE = MinBodyRate()


class BodyLimit:
    """ASGI middleware for an application none of whose routes takes a long body: at most `limit_mb` MiB are read.

    FastAPI reads a body before it asks any dependency who sends it, so a check in a route would come too late.
    """

    def __init__(self, app: ASGIApp, *, limit_mb: int) -> None:
        self._app = app
        self._limit_mb = limit_mb

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection scope. What is too much is refused by whoever reads it, within the frame."""
        if scope["type"] == "http":
            refusal = PayloadTooLarge(
                f"The request is larger than {self._limit_mb} MiB. No route here takes that much."
            )
            receive = _limited(receive, Headers(scope=scope), self._limit_mb * MIB, refusal, PACE)
        await self._app(scope, receive, send)


class BodyRoom:
    """The memory for the bodies of all requests of a process, `limit_mb` MiB together, which `setting` moves."""

    def __init__(self, limit_mb: int, *, setting: str) -> None:
        self._room = limit_mb * MIB
        self._limit_mb = limit_mb
        self._setting = setting

    @contextlib.asynccontextmanager
    async def holding(self, request: Request) -> AsyncIterator[bytes]:
        """The body of `request`, which counts until the block is left.

        Raises Busy when there is no room for more of it.
        """
        held = 0
        pieces: list[bytes] = []
        try:
            async for piece in request.stream():
                if len(piece) > self._room:
                    raise Busy(
                        f"{self._limit_mb} MiB of requests are being read, and {self._setting} allows no more. "
                        "Try again shortly."
                    )
                self._room -= len(piece)
                held += len(piece)
                pieces.append(piece)
            body = b"".join(pieces)
            pieces.clear()
            yield body
        finally:
            self._room += held


def limited(request: Request, *, limit_mb: int, setting: str, pace: MinBodyRate = PACE) -> Request:
    """Return `request` with a body that may be at most `limit_mb` MiB; call it before anything reads the body.

    Raises PayloadTooLarge now, by the Content-Length, or while the body is read, by the bytes that came. The message
    names `setting`, the variable that moves the limit. Raises RequestTimeout while it is read slower than `pace`.
    """
    refusal = PayloadTooLarge(f"The request is larger than {limit_mb} MiB. Send less, or raise {setting}.")
    if _announces_more(request.headers, limit_mb * MIB):
        raise refusal
    return Request(request.scope, _limited(request.receive, request.headers, limit_mb * MIB, refusal, pace))


def _announces_more(headers: Headers, limit: int) -> bool:
    announced = headers.get("content-length", "")
    return announced.isdigit() and int(announced) > limit


def _limited(receive: Receive, headers: Headers, limit: int, refusal: PayloadTooLarge, pace: MinBodyRate) -> Receive:
    """`receive`, raising `refusal` for the message that is too much, and RequestTimeout for one that is too late."""
    came = 0
    complete = False
    announces_more = _announces_more(headers, limit)
    began = time.monotonic()

    async def receive_within_limit() -> Message:
        nonlocal came, complete
        if announces_more:
            raise refusal
        if complete:  # what comes now is the client's leaving
            return await receive()
        try:
            async with asyncio.timeout(began + pace.seconds_for(came) - time.monotonic()):
                message = await receive()
        except TimeoutError as error:
            raise RequestTimeout(
                f"Only {came} bytes of the request came in {time.monotonic() - began:.0f} seconds. Send it faster."
            ) from error
        came += len(message.get("body", b""))
        complete = not message.get("more_body", False)
        if came > limit:
            raise refusal
        return message

    return receive_within_limit
