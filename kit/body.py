"""Reading a request's body within a limit, whatever its Content-Length claims."""

from starlette.requests import Request
from starlette.types import Message

from kit.errors import PayloadTooLarge

MIB = 1024 * 1024


def limited(request: Request, *, limit_mb: int, setting: str) -> Request:
    """Return `request` with a body that may be at most `limit_mb` MiB; call it before anything reads the body.

    Raises PayloadTooLarge now, by the Content-Length, or while the body is read, by the bytes that came. The message
    names `setting`, the variable that moves the limit.
    """
    limit = limit_mb * MIB
    refusal = PayloadTooLarge(f"The request is larger than {limit_mb} MiB. Send less, or raise {setting}.")
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > limit:
        raise refusal
    came = 0

    async def receive() -> Message:
        nonlocal came
        message = await request.receive()
        came += len(message.get("body", b""))
        if came > limit:
            raise refusal
        return message

    return Request(request.scope, receive)
