"""Reading a request's body within a limit, whatever its Content-Length claims."""

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kit.errors import PayloadTooLarge

MIB = 1024 * 1024


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
            receive = _limited(receive, Headers(scope=scope), self._limit_mb * MIB, refusal)
        await self._app(scope, receive, send)


def limited(request: Request, *, limit_mb: int, setting: str) -> Request:
    """Return `request` with a body that may be at most `limit_mb` MiB; call it before anything reads the body.

    Raises PayloadTooLarge now, by the Content-Length, or while the body is read, by the bytes that came. The message
    names `setting`, the variable that moves the limit.
    """
    refusal = PayloadTooLarge(f"The request is larger than {limit_mb} MiB. Send less, or raise {setting}.")
    if _announces_more(request.headers, limit_mb * MIB):
        raise refusal
    return Request(request.scope, _limited(request.receive, request.headers, limit_mb * MIB, refusal))


def _announces_more(headers: Headers, limit: int) -> bool:
    announced = headers.get("content-length", "")
    return announced.isdigit() and int(announced) > limit


def _limited(receive: Receive, headers: Headers, limit: int, refusal: PayloadTooLarge) -> Receive:
    """`receive`, raising `refusal` in place of the message that is too much."""
    came = 0
    announces_more = _announces_more(headers, limit)

    async def receive_within_limit() -> Message:
        nonlocal came
        if announces_more:
            raise refusal
        message = await receive()
        came += len(message.get("body", b""))
        if came > limit:
            raise refusal
        return message

    return receive_within_limit
