"""Slow bodies, and the memory budget of all bodies."""

import asyncio
import tracemalloc
from collections.abc import AsyncIterator
from typing import Any

import pytest
from starlette.requests import Request

from kit.errors import Busy, RequestTimeout
from kit.web.body import BodyMemory, MinBodyRate, limited

MIB = 1024 * 1024


def request(*pieces: bytes, ends: bool = True) -> Request:
    """A request whose body comes in `pieces`; then, unless it `ends`, nothing more for ever."""

    async def messages() -> AsyncIterator[dict[str, Any]]:
        for number, piece in enumerate(pieces):
            yield {"type": "http.request", "body": piece, "more_body": number < len(pieces) - 1 or not ends}
        await asyncio.Event().wait()

    coming = messages()
    return Request({"type": "http", "method": "POST", "headers": []}, lambda: anext(coming))


async def test_stalled_body_times_out() -> None:
    """The response closes the connection."""
    stalled = limited(request(b"ab", b"cd", ends=False), limit_mb=1, setting="X", min_rate=MinBodyRate(0.01, MIB))
    with pytest.raises(RequestTimeout, match="Only 4 bytes") as caught:
        await stalled.body()
    assert caught.value.status == 408
    assert caught.value.headers["Connection"] == "close"


async def test_fast_beginning_earns_no_credit() -> None:
    """However much has arrived, the next window needs as much as the first."""
    rate = MinBodyRate(0.02, 100)
    stalled = limited(request(b"a" * 900_000, b"b", ends=False), limit_mb=1, setting="X", min_rate=rate)
    async with asyncio.timeout(10):
        with pytest.raises(RequestTimeout, match="Only 900001 bytes"):
            await stalled.body()
    whole = limited(request(*[b"a" * 100] * 90), limit_mb=1, setting="X", min_rate=MinBodyRate(5, 1))
    assert len(await whole.body()) == 9000


async def test_body_in_tiny_pieces_takes_its_length() -> None:
    """In memory, but for the growth of its buffer."""
    count = 50_000

    async def messages() -> AsyncIterator[dict[str, Any]]:
        for number in range(1, count + 1):
            yield {"type": "http.request", "body": bytes(bytearray(b"ab")), "more_body": number < count}

    coming = messages()
    room = BodyMemory(1, setting="MAX_BODIES_MB")
    tracemalloc.start()
    try:
        async with room.holding(Request({"type": "http", "headers": []}, lambda: anext(coming))) as body:
            peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert body == b"ab" * count
    assert peak < 4 * len(body)


async def test_no_timeout_after_the_complete_body() -> None:
    within = limited(request(b"whole"), limit_mb=1, setting="X", min_rate=MinBodyRate(0.01, MIB))
    assert await within.body() == b"whole"
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(within.receive(), 0.05)


async def test_memory_budget_is_shared_and_released() -> None:
    """Over budget is a 429."""
    room = BodyMemory(1, setting="MAX_BODIES_MB")
    large = b"a" * (MIB * 3 // 4)
    async with room.holding(request(large)) as first:
        assert first == large
        with pytest.raises(Busy, match="MAX_BODIES_MB"):
            async with room.holding(request(large)):
                pass
    async with room.holding(request(large, b"b")) as second:
        assert second == large + b"b"
    with pytest.raises(ValueError, match="not JSON"):
        async with room.holding(request(large)):
            raise ValueError("not JSON")
    async with room.holding(request(large)):
        pass
