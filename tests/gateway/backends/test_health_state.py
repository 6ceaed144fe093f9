"""What a backend's state is, of all that is known of it."""

import pytest

from gateway.backends.circuit_breaker import IN_A_ROW
from gateway.backends.health_state import COLD, Condition, State


def condition(state: State = "healthy", *, failing: bool = False, stuck: bool = False) -> Condition:
    """A backend that polls find in `state`."""
    made = Condition()
    made.observe(state, None if state == "healthy" else f"polls say {state}", 0.0)
    if failing:
        for _ in range(IN_A_ROW):
            made.breaker.failed("reset", 0.0)
    if stuck:
        made.be_stuck("no byte")
    return made


@pytest.mark.parametrize(
    ("observed", "failing", "stuck", "state", "reason"),
    [
        ("healthy", False, False, "healthy", None),
        ("busy", False, False, "busy", "polls say busy"),
        ("healthy", True, False, "unhealthy", "it answers health polls, but the last 5 requests failed: reset"),
        ("busy", True, True, "stuck", "no byte"),
        ("loading", True, True, "loading", "polls say loading"),
        ("unhealthy", False, True, "unhealthy", "polls say unhealthy"),
    ],
)
def test_state(observed: State, failing: bool, stuck: bool, state: State, reason: str | None) -> None:
    """Polls that find it down come first, then being stuck, then failures; an operator's word before all."""
    made = condition(observed, failing=failing, stuck=stuck)
    assert (made.state, made.reason) == (state, reason)
    made.draining = True
    assert made.state == "draining"


def test_doubtful() -> None:
    """Only failed requests speak against it: not stuck, not down, not taken out."""
    assert condition(failing=True).is_doubtful
    assert not condition().is_doubtful
    assert not condition(failing=True, stuck=True).is_doubtful
    assert not condition("unhealthy", failing=True).is_doubtful
    made = condition(failing=True)
    made.draining = True
    assert not made.is_doubtful


def test_canary_brings_it_back() -> None:
    """Stuck or half open, and answering polls, it is asked; a good answer makes it healthy, a bad one tells why not."""
    for made in (condition(stuck=True), condition(failing=True)):
        assert made.wants_canary(100.0)
        made.canary_answered("no answer", 100.0)
        assert made.reason == "no answer"
        assert str(made.state) != "healthy"
        made.canary_answered(None, 200.0)
        assert made.state == "healthy"
        assert not made.wants_canary(1000.0)
    assert not condition("unhealthy", failing=True).wants_canary(100.0)
    # Who misses its polls would not answer a canary either.
    assert not condition("busy", stuck=True).wants_canary(100.0)


def test_verdict_of_others() -> None:
    """What another worker has found holds until it is taken back; the graver of two counts; only the own is told."""
    made = condition()
    made.others = ("unhealthy", "it failed there")
    assert (made.state, made.reason, made.verdict) == ("unhealthy", "it failed there", None)
    assert made.is_doubtful
    assert not made.wants_canary(100.0)
    made.others = None
    assert made.state == "healthy"
    failing = condition(failing=True)
    failing.others = ("stuck", "it hangs there")
    assert (failing.state, failing.reason) == ("stuck", "it hangs there")
    assert not failing.is_doubtful
    assert failing.verdict is not None
    assert failing.verdict[0] == "unhealthy"


def test_return_from_being_down_asks_a_canary_at_once() -> None:
    """Who was down may be another process: what the old one did is looked into again without a pause."""
    made = condition(failing=True)
    made.observe("unhealthy", "gone", 0.5)
    made.observe("healthy", None, 1.0)
    assert made.state == "unhealthy"
    assert made.wants_canary(1.0)


def test_slow_start() -> None:
    """One that has started, or come later than the gateway, warms up; those that were there first are equally cold."""
    made = Condition()
    made.slow_start_s = 10.0
    made.observe("healthy", None, 100.0)
    assert made.warmth(100.0) == 1.0
    made.observe("unhealthy", "gone", 110.0)
    made.observe("healthy", None, 120.0)
    assert [made.warmth(120.0 + age) for age in (0.0, 5.0, 10.0)] == [COLD, 0.5, 1.0]
    new = Condition()
    new.slow_start_s, new.is_new = 10.0, True
    new.observe("healthy", None, 100.0)
    assert new.warmth(102.0) == 0.2
    new.slow_start_s = 0.0
    assert new.warmth(100.0) == 1.0
