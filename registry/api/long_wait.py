"""Hold requests for a model that is being mirrored, because Hub clients do not retry a 503.

Hub clients also time out after ten seconds without a byte (HF_HUB_ETAG_TIMEOUT, HF_HUB_DOWNLOAD_TIMEOUT). A JSON
response that takes longer starts with blanks, which JSON ignores (RFC 8259, section 2), and ends with the document; if
the download fails, the connection is closed. A file cannot start with blanks: its client gets a 429 with Retry-After.

`Prefer: respond-async` (RFC 7240) requests the 503 with the progress at once; `Prefer: wait=SECONDS` requests the
complete model instead of the files that are ready.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import structlog
from fastapi import Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse
from starlette.types import Send

from kit.errors import ApiError
from registry.download.on_demand import MirrorPending

log = structlog.get_logger(__name__)

POLL_S = 0.02

Handler = Callable[[Request], Response]


@dataclass
class HoldTimes:
    """Seconds to wait before a response, and then between two blanks."""

    hold_s: float = 5.0
    blank_interval_s: float = 2.0


def accepts_partial_model(request: Request) -> bool:
    """Whether the client accepts single files before the model is complete."""
    return not {"respond-async", "wait"} & _preferences(request)


def _preferences(request: Request) -> set[str]:
    found = request.headers.get("prefer", "").lower().split(",")
    return {each.partition(";")[0].partition("=")[0].strip() for each in found}


async def hold(request: Request, handler: Handler, times: HoldTimes, *, is_json: bool = False) -> Response:
    """Return the handler's response, and call it again when the download that it waits for has progressed.

    `is_json`: after `hold_s`, stream blanks; the response must then be JSON without headers of its own.
    Raises what `handler` raises, and MirrorPending after `hold_s` if there can be no blanks.
    """
    deadline = time.monotonic() + times.hold_s
    while True:
        try:
            response = await run_in_threadpool(handler, request)
        except MirrorPending as pending:
            if "respond-async" in _preferences(request):
                raise
            if await _wait(pending, request, deadline):
                continue
            if is_json and request.method == "GET":
                return _AbortableResponse(
                    _blanks_then_body(request, handler, times.blank_interval_s), media_type="application/json"
                )
            raise
        request.state.quiet = False
        return response


async def _wait(pending: MirrorPending, request: Request, deadline: float) -> bool:
    """Wait until the request can be served or the job has ended; False at the deadline or if the client left."""
    # At least once: right after its end a job may still count as pending.
    await asyncio.sleep(POLL_S)
    while pending.job is not None and not pending.job.ended.is_set() and not pending.is_available():
        if time.monotonic() >= deadline or await request.is_disconnected():
            return False
        await asyncio.sleep(POLL_S)
    return pending.job is not None


async def _blanks_then_body(request: Request, handler: Handler, interval_s: float) -> AsyncIterator[bytes]:
    while True:
        yield b" "
        try:
            response = await run_in_threadpool(handler, request)
        except MirrorPending as pending:
            await _wait(pending, request, time.monotonic() + interval_s)
        except ApiError as error:
            log.warning("download failed while a client waited", path=request.url.path, reason=error.message)
            raise _Aborted from error
        else:
            request.state.quiet = False
            yield bytes(response.body)
            return


class _Aborted(Exception):
    """No body can follow the blanks."""


class _AbortableResponse(StreamingResponse):
    """A response without its end when the body raises _Aborted: then the server closes the connection."""

    async def stream_response(self, send: Send) -> None:
        """See `StreamingResponse`."""
        with contextlib.suppress(_Aborted):
            await super().stream_response(send)
