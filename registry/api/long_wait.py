"""Who asks for what is on its way waits for it, as Hub clients need: they ask once, and a 503 ends them.

They do not bear silence either, beyond ten seconds (HF_HUB_ETAG_TIMEOUT). An answer in JSON that is not there by then
begins with blanks, which mean nothing in JSON (RFC 8259, section 2), and goes on when the model is here; if it comes to
nothing, the answer breaks off. Who would rather hear how far it is says `Prefer: respond-async` (RFC 7240); who would
rather have the whole model than what of it is there, and waits for that, `Prefer: wait=SECONDS`.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable

import structlog
from fastapi import Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse
from starlette.types import Send

from kit.errors import ApiError
from registry.download.on_demand import OnTheWay

log = structlog.get_logger(__name__)

QUIET_S = 5.0
BLANK_EVERY_S = 2.0
POLL_S = 0.02

Answer = Callable[[Request], Response]


def takes_parts(request: Request) -> bool:
    """Whether the client takes what there is of a model before all of it is here."""
    return not {"respond-async", "wait"} & _preferences(request)


def _preferences(request: Request) -> set[str]:
    found = request.headers.get("prefer", "").lower().split(",")
    return {each.partition(";")[0].partition("=")[0].strip() for each in found}


async def or_wait(
    request: Request, answer: Answer, *, blanks: bool = False, late: Answer | None = None
) -> Response:  # fmt: skip
    """What `answer` gives, as soon as it can; `blanks`: it is JSON, and has no headers of its own.

    When it takes too long: what `late` gives. Raises what these raise, OnTheWay too.
    """
    quiet_until = time.monotonic() + QUIET_S
    while True:
        try:
            response = await run_in_threadpool(answer, request)
        except OnTheWay as on_the_way:
            if "respond-async" in _preferences(request):
                raise
            if await _changed(on_the_way, request, quiet_until):
                continue
            if late is not None and not await request.is_disconnected():
                return await run_in_threadpool(late, request)
            if blanks and request.method == "GET":
                return _Blanks(_blanks_until(request, answer), media_type="application/json")
            raise
        request.state.quiet = False
        return response


async def _changed(on_the_way: OnTheWay, request: Request, until: float) -> bool:
    """Wait until it may be answered, or will not be; False when there is no more time, or nobody who waits."""
    while on_the_way.job is not None and not on_the_way.job.ended.is_set() and not on_the_way.is_there():
        if time.monotonic() >= until or await request.is_disconnected():
            return False
        await asyncio.sleep(POLL_S)
    return on_the_way.job is not None


async def _blanks_until(request: Request, answer: Answer) -> AsyncIterator[bytes]:
    while True:
        yield b" "
        try:
            response = await run_in_threadpool(answer, request)
        except OnTheWay as on_the_way:
            await _changed(on_the_way, request, time.monotonic() + BLANK_EVERY_S)
        except ApiError as error:
            log.warning("what a client waited for did not come", path=request.url.path, reason=error.message)
            raise _Over from error
        else:
            request.state.quiet = False
            yield bytes(response.body)
            return


class _Over(Exception):
    """There will be no answer."""


class _Blanks(StreamingResponse):
    """An answer that may break off: then its end is not sent, and the server closes the connection."""

    async def stream_response(self, send: Send) -> None:
        """See `StreamingResponse`."""
        with contextlib.suppress(_Over):
            await super().stream_response(send)
