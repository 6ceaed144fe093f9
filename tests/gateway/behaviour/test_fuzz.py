"""Mutated requests, a short run of `python -m bench.fuzz`; the long one is a million."""

import random

import pytest

from bench.blocking_shapes import MB, Search, Shape
from bench.fuzz import fuzzing, mutated, run


async def test_twenty_thousand_mutations() -> None:
    """No crash, hang or leak, and each backend request is exactly one request."""
    figures = await run(20_000, seed=7)
    assert (figures["answered"] or 0) > 15_000
    assert (figures["rss_growth_mb"] or 0) < 64


def test_the_same_seed_makes_the_same_cases() -> None:
    assert [mutated(random.Random(3)) for _ in range(20)] == [mutated(random.Random(3)) for _ in range(20)]


async def growth(search: Search, shape: Shape) -> float:
    """How many times as long a turn of the loop is for 6 MB of a shape as for 1 MB, in CPU time."""
    small, large = [min([await search.blocking_s(shape, size * MB) for _ in range(3)]) for size in (1, 6)]
    return large / small


async def test_no_shape_blocks_the_loop_longer_if_it_is_larger() -> None:
    """The worst shapes of a short search: the work of one read is bounded, whatever came before it."""
    async with fuzzing(5) as fuzz:
        search = Search(fuzz.connect, fuzz.settle, seed=5)
        await search.run(800)
        for kind in ("json", "large json", "form"):
            _, shape = await search.worst(kind, MB)
            assert await growth(search, shape) < 3, shape


async def test_search_detects_work_that_grows_with_the_body(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here, a gateway that decodes a whole body when it is complete."""
    monkeypatch.setattr("gateway.bodies.body.MAX_DECODED", 2**40)
    monkeypatch.setattr("gateway.bodies.json_scan.MAX_DECODED", 2**40)
    async with fuzzing(6) as fuzz:
        search = Search(fuzz.connect, fuzz.settle, seed=6)
        assert await growth(search, Shape("json", b"/v1/completions", b'"messages":[', b"{},")) > 3


async def test_harness_detects_excess_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.bodies.body.JsonBody.pieces", lambda self, _: (2, b"{}GET / HTTP/1.1", None))
    async with fuzzing(1) as fuzz:
        with pytest.raises(AssertionError, match="more than one request"):
            await fuzz.case(b'POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 13\r\n\r\n{"model":"m"}')
