"""When a backend whose requests fail loses them, and when it gets some again."""

import pytest

from gateway.backends.circuit_breaker import FORGIVEN_S, IN_A_ROW, MAX_PAUSE_S, MIN_OUTCOMES, PAUSE_S, Breaker


def opened(now: float = 0.0) -> Breaker:
    """A breaker that five failures have opened."""
    breaker = Breaker()
    assert [breaker.failed("reset", now) for _ in range(IN_A_ROW)] == [False] * (IN_A_ROW - 1) + [True]
    return breaker


def test_failures_in_a_row_open_it() -> None:
    """The last of five failures opens it, and it says why; one answer between them begins the count anew."""
    breaker = Breaker()
    for _ in range(3):
        for _ in range(IN_A_ROW - 1):
            assert not breaker.failed("reset", 0.0)
        breaker.succeeded(0.0)
    assert breaker.reason is None
    assert opened().reason == "it answers health polls, but the last 5 requests failed: reset"


@pytest.mark.parametrize(("failures", "of", "opens"), [(1, 4, False), (2, 5, False), (3, 5, True), (3, 4, True)])
def test_share_of_failures_opens_it(failures: int, of: int, opens: bool) -> None:
    """More than half of the requests of late, but of no fewer than twenty."""
    breaker = Breaker()
    for count in range(200):
        if count % of < failures:
            breaker.failed("500", 0.0)
        else:
            breaker.succeeded(0.0)
        assert not (breaker.is_open and count < MIN_OUTCOMES - 1)
        if breaker.is_open:
            break
    assert breaker.is_open is opens


def test_half_open_after_a_pause() -> None:
    """A request that ends well closes it after the pause, and not before: it may be an old one."""
    breaker = opened(10.0)
    assert not breaker.is_due(10.0 + PAUSE_S * 0.9)
    assert not breaker.succeeded(10.0 + PAUSE_S * 0.9)
    assert breaker.is_open
    assert breaker.is_due(10.0 + PAUSE_S)
    assert breaker.succeeded(10.0 + PAUSE_S)
    assert not breaker.is_open
    assert not breaker.failed("reset", 20.0)


def test_pauses_grow_and_are_forgiven() -> None:
    """Each failed canary and each soon relapse doubles the pause up to a bound; a good minute forgives."""
    breaker = opened()
    breaker.canary_failed("no answer", 5.0)
    assert breaker.reason == "no answer"
    assert not breaker.is_due(5.0 + PAUSE_S * 2 - 0.1)
    assert breaker.is_due(5.0 + PAUSE_S * 2)
    breaker.close(9.0)
    for _ in range(IN_A_ROW):
        breaker.failed("reset", 10.0)
    assert not breaker.is_due(10.0 + PAUSE_S * 4 - 0.1)
    for _ in range(20):
        breaker.canary_failed("no answer", 30.0)
    assert breaker.is_due(30.0 + MAX_PAUSE_S)
    breaker.close(100.0)
    for _ in range(IN_A_ROW):
        breaker.failed("reset", 100.0 + FORGIVEN_S)
    assert breaker.is_due(100.0 + FORGIVEN_S + PAUSE_S)


def test_hasten() -> None:
    """One that has come back from being down is half open at once."""
    breaker = opened(10.0)
    breaker.hasten(10.5)
    assert breaker.is_due(10.5)


def test_successes_in_a_row_close_it_without_a_pause() -> None:
    """Where requests go to it all the same, five that end well do as a canary; a failure between undoes them."""
    breaker = opened()
    for _ in range(3):
        assert not any(breaker.succeeded(0.1) for _ in range(IN_A_ROW - 1))
        breaker.failed("reset", 0.1)
    assert [breaker.succeeded(0.1) for _ in range(IN_A_ROW)] == [False] * (IN_A_ROW - 1) + [True]
    assert not breaker.is_open
