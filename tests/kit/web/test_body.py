"""Slow bodies, and the memory budget of all bodies."""

import asyncio
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


async def test_received_bytes_extend_the_timeout() -> None:
    assert MinBodyRate(30, 1000).seconds_for(5000) == 35
    whole = limited(request(b"a" * 9000, b"b"), limit_mb=1, setting="X", min_rate=MinBodyRate(5, 1))
    assert len(await whole.body()) == 9001


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
