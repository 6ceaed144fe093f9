"""A backend's state from probes, request outcomes, progress, peers and the operator."""

import pytest

from gateway.backends.circuit_breaker import MAX_CONSECUTIVE_FAILURES
from gateway.backends.health_state import COLD_CAPACITY, HealthState, State


def health(state: State = "healthy", *, failing: bool = False, stuck: bool = False) -> HealthState:
    """Return the health of a backend whose last probe found `state`."""
    made = HealthState()
    made.observe(state, None if state == "healthy" else f"polls say {state}", 0.0)
    if failing:
        for _ in range(MAX_CONSECUTIVE_FAILURES):
            made.record_failure("reset", 0.0)
    if stuck:
        made.set_stuck("no byte")
    return made


@pytest.mark.parametrize(
    ("observed", "failing", "stuck", "state", "reason"),
    [
        ("healthy", False, False, "healthy", None),
        ("busy", False, False, "busy", "polls say busy"),
        ("healthy", True, False, "unhealthy", "it passes health probes, but the last 5 requests failed: reset"),
        ("busy", True, True, "stuck", "no byte"),
        ("loading", True, True, "loading", "polls say loading"),
        ("unhealthy", False, True, "unhealthy", "polls say unhealthy"),
    ],
)
def test_state_precedence(observed: State, failing: bool, stuck: bool, state: State, reason: str | None) -> None:
    """Draining comes first, then a failed probe, then stuck, then failed requests."""
    made = health(observed, failing=failing, stuck=stuck)
    assert (made.state, made.reason) == (state, reason)
    made.draining = True
    assert made.state == "draining"


def test_last_resort_only_after_failed_requests() -> None:
    """Not if stuck, down or draining."""
    assert health(failing=True).is_last_resort
    assert not health().is_last_resort
    assert not health(failing=True, stuck=True).is_last_resort
    assert not health("unhealthy", failing=True).is_last_resort
    made = health(failing=True)
    made.draining = True
    assert not made.is_last_resort


def test_canary_decides_when_stuck_or_half_open() -> None:
    for made in (health(stuck=True), health(failing=True)):
        assert made.needs_canary(100.0)
        made.record_canary("no answer", 100.0)
        assert made.reason == "no answer"
        assert str(made.state) != "healthy"
        made.record_canary(None, 200.0)
        assert made.state == "healthy"
        assert not made.needs_canary(1000.0)
    assert not health("unhealthy", failing=True).needs_canary(100.0)
    # A backend that misses probes would not respond to a canary either.
    assert not health("busy", stuck=True).needs_canary(100.0)


def test_peer_verdict_applies_until_revoked() -> None:
    """The worse of both counts; only the worker's own is published."""
    made = health()
    made.peer_verdict = ("unhealthy", "it failed there")
    assert (made.state, made.reason, made.verdict) == ("unhealthy", "it failed there", None)
    assert made.is_last_resort
    assert not made.needs_canary(100.0)
    made.peer_verdict = None
    assert made.state == "healthy"
    failing = health(failing=True)
    failing.peer_verdict = ("stuck", "it hangs there")
    assert (failing.state, failing.reason) == ("stuck", "it hangs there")
    assert not failing.is_last_resort
    assert failing.verdict is not None
    assert failing.verdict[0] == "unhealthy"


def test_recovery_ends_the_pause() -> None:
    """The process may be another one: a canary is due at once."""
    made = health(failing=True)
    made.observe("unhealthy", "gone", 0.5)
    made.observe("healthy", None, 1.0)
    assert made.state == "unhealthy"
    assert made.needs_canary(1.0)


def test_slow_start() -> None:
    """After a restart or a late addition; backends present from the start are equally cold."""
    made = HealthState()
    made.slow_start_s = 10.0
    made.observe("healthy", None, 100.0)
    assert made.warmth(100.0) == 1.0
    made.observe("unhealthy", "gone", 110.0)
    made.observe("healthy", None, 120.0)
    assert [made.warmth(120.0 + age) for age in (0.0, 5.0, 10.0)] == [COLD_CAPACITY, 0.5, 1.0]
    new = HealthState()
    new.slow_start_s, new.is_new = 10.0, True
    new.observe("healthy", None, 100.0)
    assert new.warmth(102.0) == 0.2
    new.slow_start_s = 0.0
    assert new.warmth(100.0) == 1.0
