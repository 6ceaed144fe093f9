"""The latency model: rises at once, decays slowly."""

import random

import pytest

from gateway.backends.latency_model import MIN_DECAY, PEAK_DECAY_S, TRUSTED_S, LatencyModel
from gateway.backends.load import REQUEST_OVERHEAD_KB, Load
from gateway.backends.traffic import Traffic


def test_fits_base_and_cost_per_kb() -> None:
    noise = random.Random(1)
    pace = LatencyModel()
    for number in range(60):
        kb = noise.uniform(1, 40)
        pace.observe(kb, (0.1 + 0.02 * kb) * noise.uniform(0.95, 1.05), number / 10)
    assert pace.base_s == pytest.approx(0.1, rel=0.4)
    assert pace.per_kb_s == pytest.approx(0.02, rel=0.2)


def test_equal_lengths_leave_the_slope_to_the_prior() -> None:
    """Longer prompts are then expected to take longer, never less."""
    pace = LatencyModel()
    for second in range(30):
        pace.observe(4.0, 0.2, float(second))
    assert pace.expected(4.0, 30.0) == pytest.approx(0.2, rel=0.05)
    assert 0.2 < pace.expected(8.0, 30.0) <= 0.41


def test_base_and_slope_are_never_negative() -> None:
    pace = LatencyModel()
    for second in range(30):
        pace.observe(*((1.0, 0.5) if second % 2 else (50.0, 0.1)), float(second))
        assert pace.base_s >= 0
        assert pace.per_kb_s >= 0


def test_peak_rises_at_once_and_decays() -> None:
    pace = LatencyModel()
    for tenth in range(40):
        pace.observe(1.0, 0.1, tenth / 10)
    before = pace.expected(1.0, 4.0)
    pace.observe(1.0, 1.0, 4.0)
    assert pace.expected(1.0, 4.0) > 5 * before
    assert pace.expected(1.0, 4.0 + 4 * PEAK_DECAY_S) < 2 * before
    for _ in range(60):
        pace.observe(1.0, 0.1, 4.1)
    assert pace.expected(1.0, 4.1) < 2 * before


def test_follows_a_lasting_change() -> None:
    pace = LatencyModel()
    for second in range(30):
        pace.observe(1.0, 0.1, float(second))
    for second in range(30, 90):
        pace.observe(1.0, 1.0, float(second))
    assert pace.expected(1.0, 90.0 + 3 * PEAK_DECAY_S) == pytest.approx(1.0, rel=0.1)


def test_old_estimates_decay_to_a_minimum() -> None:
    """So that the backend is tried again; slow ones stay slower than fast ones."""
    slow, fast = LatencyModel(), LatencyModel()
    slow.observe(1.0, 1.0, 0.0)
    fast.observe(1.0, 0.1, 0.0)
    assert slow.expected(1.0, TRUSTED_S) == pytest.approx(1.0)
    assert slow.expected(1.0, 4 * TRUSTED_S) < 0.1
    hours = 100 * TRUSTED_S
    assert slow.expected(1.0, hours) == pytest.approx(MIN_DECAY)
    assert slow.expected(1.0, hours) == pytest.approx(10 * fast.expected(1.0, hours))


def test_pending_work_ends_with_the_first_byte_or_the_ticket() -> None:
    """Whichever comes first, and once."""
    load, traffic = Load(), Traffic()
    tickets = [load.admit(traffic, kb, 1.0, shows_first_token=True) for kb in (1.0, 2.0, 3.0)]
    assert [ticket.ahead_kb for ticket in tickets] == [0.0, 1.0 + REQUEST_OVERHEAD_KB, 3.0 + 2 * REQUEST_OVERHEAD_KB]
    assert load.pending(1.0) == 6.0 + 3 * REQUEST_OVERHEAD_KB
    tickets[0].first_byte(1.1, ok=True)
    tickets[0].end("http_200")
    tickets[1].end("http_200")
    assert load.pending(1.1) == 3.0 + REQUEST_OVERHEAD_KB
    tickets[2].end("http_200")
    tickets[2].end("http_200")
    assert load.pending(1.1) == 0.0
    assert (traffic.in_flight, traffic.requests, traffic.outcomes) == (0, 3, {"http_200": 3})


def test_unstreamed_tickets_do_not_accumulate() -> None:
    load, traffic = Load(), Traffic()
    for number in range(1000):
        load.admit(traffic, 1.0, number / 10, shows_first_token=False).end("http_200")
    assert len(load._assumed) < 30  # not part of the interface
