"""The trace of a request through the gateway's modules."""

import asyncio
from pathlib import Path

from bench.trace import Trace, Tracer, trace

ROOT = Path(__file__).resolve().parents[2]


def test_a_hop_is_a_call_into_another_module_than_the_call_before() -> None:
    recorded = Trace([("a", "f"), ("a", "g"), ("b", "f"), ("a", "f")])
    assert (recorded.modules, recorded.hops) == (2, 2)


def test_only_the_given_packages_count() -> None:
    recorded = asyncio.run(trace("fast path", Tracer(ROOT, {"gateway"})))
    assert {module.split(".")[0] for module, _ in recorded.calls} == {"gateway"}
    assert recorded.modules > 5
