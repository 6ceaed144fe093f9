"""Circuit breaker: when failing requests open it, and when it closes."""

import pytest

from gateway.backends.circuit_breaker import (
    MAX_CONSECUTIVE_FAILURES,
    MAX_PAUSE_S,
    MIN_OUTCOMES,
    PAUSE_RESET_S,
    PAUSE_S,
    CircuitBreaker,
)


def opened(now: float = 0.0) -> CircuitBreaker:
    """A breaker that five failures have opened."""
    breaker = CircuitBreaker()
    assert [breaker.record_failure("reset", now) for _ in range(MAX_CONSECUTIVE_FAILURES)] == [False] * (
        MAX_CONSECUTIVE_FAILURES - 1
    ) + [True]
    return breaker


def test_consecutive_failures_open() -> None:
    """A success in between resets the count."""
    breaker = CircuitBreaker()
    for _ in range(3):
        for _ in range(MAX_CONSECUTIVE_FAILURES - 1):
            assert not breaker.record_failure("reset", 0.0)
        breaker.record_success(0.0)
    assert breaker.reason is None
    assert opened().reason == "it passes health probes, but the last 5 requests failed: reset"


@pytest.mark.parametrize(("failures", "of", "opens"), [(1, 4, False), (2, 5, False), (3, 5, True), (3, 4, True)])
def test_failure_rate_opens(failures: int, of: int, opens: bool) -> None:
    """More than half of at least twenty."""
    breaker = CircuitBreaker()
    for count in range(200):
        if count % of < failures:
            breaker.record_failure("500", 0.0)
        else:
            breaker.record_success(0.0)
        assert not (breaker.is_open and count < MIN_OUTCOMES - 1)
        if breaker.is_open:
            break
    assert breaker.is_open is opens


def test_success_closes_when_half_open() -> None:
    """Not before: it may be a request from before."""
    breaker = opened(10.0)
    assert not breaker.is_half_open(10.0 + PAUSE_S * 0.9)
    assert not breaker.record_success(10.0 + PAUSE_S * 0.9)
    assert breaker.is_open
    assert breaker.is_half_open(10.0 + PAUSE_S)
    assert breaker.record_success(10.0 + PAUSE_S)
    assert not breaker.is_open
    assert not breaker.record_failure("reset", 20.0)


def test_pause_doubles_and_resets() -> None:
    """Each failed canary and each early reopening doubles it up to a limit; a minute closed resets it."""
    breaker = opened()
    breaker.reopen("no answer", 5.0)
    assert breaker.reason == "no answer"
    assert not breaker.is_half_open(5.0 + PAUSE_S * 2 - 0.1)
    assert breaker.is_half_open(5.0 + PAUSE_S * 2)
    breaker.close(9.0)
    for _ in range(MAX_CONSECUTIVE_FAILURES):
        breaker.record_failure("reset", 10.0)
    assert not breaker.is_half_open(10.0 + PAUSE_S * 4 - 0.1)
    for _ in range(20):
        breaker.reopen("no answer", 30.0)
    assert breaker.is_half_open(30.0 + MAX_PAUSE_S)
    breaker.close(100.0)
    for _ in range(MAX_CONSECUTIVE_FAILURES):
        breaker.record_failure("reset", 100.0 + PAUSE_RESET_S)
    assert breaker.is_half_open(100.0 + PAUSE_RESET_S + PAUSE_S)


def test_tripped_breaker_is_half_open_at_once() -> None:
    """A canary may follow immediately; failed ones follow at growing intervals. The latest reason is shown."""
    breaker = CircuitBreaker()
    breaker.trip("401", 10.0)
    assert (breaker.reason, breaker.is_half_open(10.0)) == ("401", True)
    breaker.reopen("401 again", 10.0)
    assert not breaker.is_half_open(10.0 + PAUSE_S)
    breaker.trip("403", 10.0 + PAUSE_S)
    assert (breaker.reason, breaker.is_half_open(10.0 + PAUSE_S)) == ("403", False)
    assert breaker.is_half_open(10.0 + 2 * PAUSE_S)
    breaker.close(20.0)
    assert breaker.reason is None


def test_end_pause_makes_it_half_open() -> None:
    breaker = opened(10.0)
    breaker.end_pause(10.5)
    assert breaker.is_half_open(10.5)


def test_consecutive_successes_close_without_a_pause() -> None:
    breaker = opened()
    for _ in range(3):
        assert not any(breaker.record_success(0.1) for _ in range(MAX_CONSECUTIVE_FAILURES - 1))
        breaker.record_failure("reset", 0.1)
    assert [breaker.record_success(0.1) for _ in range(MAX_CONSECUTIVE_FAILURES)] == [False] * (
        MAX_CONSECUTIVE_FAILURES - 1
    ) + [True]
    assert not breaker.is_open
