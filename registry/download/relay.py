"""The body of a file that is still on its way: sent on as it comes, and cut off where it turns out to be wrong."""

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator

from fastapi.concurrency import iterate_in_threadpool, run_in_threadpool
from fastapi.responses import StreamingResponse
from starlette.types import Send

from registry.download.arrival import Arrival, Cut
from registry.download.jobs import Job
from registry.download.partial_model import UnderWay
from registry.models.manifest import FileEntry

CHUNK = 1 << 20
POLL_S = 0.02
# Clients bear silence for ten seconds (HF_HUB_DOWNLOAD_TIMEOUT).
DROP_EVERY_S = 3.0

Finished = Callable[[int], Iterator[bytes]]


class Relay(StreamingResponse):
    """An answer with a body that comes to its end only if the file is right; else the server closes the connection."""

    async def stream_response(self, send: Send) -> None:
        """See `StreamingResponse`."""
        with contextlib.suppress(Cut):
            await super().stream_response(send)


async def follow(
    job: Job, under_way: UnderWay, file: FileEntry, found: Arrival | None, at: int, finished: Finished
) -> AsyncIterator[bytes]:
    """The bytes of `file` from `at` on, as they come. Raises Cut, StoreError.

    `found`: what it is read by until it is here; None waits for that. `finished` gives the bytes from there on of a
    file that is in the store.
    """
    descriptor, noted = None, False
    silent_since = time.monotonic()
    try:
        while at < file.size and not under_way.has(file.path):
            piece = b""
            found = found or under_way.arrival(file.path)
            if found is not None:
                if not noted:
                    await run_in_threadpool(found.may_be_gone_on_with)
                    noted = True
                descriptor = found.open() if descriptor is None else descriptor
                reserve = time.monotonic() - silent_since > DROP_EVERY_S
                most = 1 if reserve else CHUNK
                end = min(found.end(at, readable=descriptor is not None, reserve=reserve), at + most)
                piece = await run_in_threadpool(found.read, descriptor, at, end) if end > at else b""
            if piece:
                yield piece
                at += len(piece)
                silent_since = time.monotonic()
            elif job.ended.is_set() and not under_way.has(file.path):
                raise Cut
            else:
                await asyncio.sleep(POLL_S)
    finally:
        if descriptor is not None:
            os.close(descriptor)
    if at < file.size:
        async for piece in iterate_in_threadpool(finished(at)):
            yield piece
