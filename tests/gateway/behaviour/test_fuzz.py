"""Mutated requests, a short run of `python -m bench.fuzz`; the long one is a million."""

import random

import pytest

from bench.fuzz import fuzzing, mutated, run


async def test_twenty_thousand_mutations() -> None:
    """No crash, hang or leak, and each backend request is exactly one request."""
    figures = await run(20_000, seed=7)
    assert (figures["answered"] or 0) > 15_000
    assert (figures["rss_growth_mb"] or 0) < 64


def test_the_same_seed_makes_the_same_cases() -> None:
    assert [mutated(random.Random(3)) for _ in range(20)] == [mutated(random.Random(3)) for _ in range(20)]


async def test_harness_detects_excess_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.bodies.body.JsonBody.pieces", lambda self, _: (2, b"{}GET / HTTP/1.1", None))
    async with fuzzing(1) as fuzz:
        with pytest.raises(AssertionError, match="more than one request"):
            await fuzz.case(b'POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 13\r\n\r\n{"model":"m"}')
