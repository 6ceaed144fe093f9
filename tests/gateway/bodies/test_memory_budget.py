"""The memory budget: shares of clients, the reserve for small bodies, and what is returned."""

import pytest

from gateway.bodies.memory_budget import MAX_SMALL, RESERVE_PARTS, SHARE, Allocation, MemoryBudget
from kit.errors import Busy

MB = 1024 * 1024
LIMIT = 64 * MB
RESERVE = LIMIT // RESERVE_PARTS
MAIN = LIMIT - RESERVE


def fill(allocation: Allocation, step: int = MAX_SMALL) -> int:
    """Add to `allocation` until it is refused; return its size."""
    while allocation.try_grow(step):
        pass
    return allocation.size


def test_all_bytes_return() -> None:
    """In any order, whatever part of the budget they came from."""
    budget = MemoryBudget(LIMIT, MB)
    held = [budget.allocation(f"192.0.2.{number}") for number in range(9)]
    for one in held:
        fill(one)
    small = budget.allocation("192.0.2.1")
    small.grow(10)
    small.shrink(4)
    for one in (*reversed(held), small):
        one.shrink(one.size)
    assert budget.in_use == 0
    fill(small)
    small.shrink(small.size)
    assert budget.in_use == 0


def test_no_client_holds_everything() -> None:
    """However many there are, each new one finds room, and one alone may use most of it."""
    budget = MemoryBudget(LIMIT, MB)
    sizes = [fill(budget.allocation(f"192.0.2.{number}")) for number in range(4)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == pytest.approx(MAIN * SHARE / (SHARE + 1), abs=MAX_SMALL)
    assert sizes[-1] >= 8 * MAX_SMALL


def test_share_is_of_all_requests_of_a_client() -> None:
    budget = MemoryBudget(LIMIT, MB)
    first, second = (budget.allocation("192.0.2.1") for _ in range(2))
    fill(first)
    with pytest.raises(Busy, match="This client's requests") as refused:
        second.grow(MB)
    assert (refused.value.status, refused.value.headers["Retry-After"]) == (429, "5")
    assert "MAX_BUFFERED_MB" in refused.value.message
    assert first.size < MAIN


def test_exhausted_budget_is_429() -> None:
    budget = MemoryBudget(LIMIT, 48 * MB)
    budget.allocation("192.0.2.1").grow(47 * MB)
    with pytest.raises(Busy, match="have reached MAX_BUFFERED_MB"):
        budget.allocation("192.0.2.2").grow(10 * MB)


@pytest.mark.parametrize("limit", [8 * MB, 10 * MB, LIMIT])
def test_largest_body_fits_into_an_empty_budget(limit: int) -> None:
    """Also if the settings leave room for one only; small ones still find their reserve."""
    budget = MemoryBudget(limit, 8 * MB)
    for size in (8 * MB, 1000):
        budget.allocation("192.0.2.1").grow(size)


def test_small_bodies_have_a_reserve() -> None:
    """Also those of a client whose large ones fill its share; a body that outgrows it is refused."""
    budget = MemoryBudget(LIMIT, MAIN)
    large = budget.allocation("192.0.2.1")
    large.grow(MAIN)
    small = [budget.allocation(f"192.0.2.{number % 2}") for number in range(64)]
    for one in small:
        one.grow(1000)
    assert not small[0].try_grow(MAX_SMALL)
    assert small[0].size == 1000
    large.shrink(MAIN)
    assert small[0].try_grow(MAX_SMALL)
    for one in small:
        one.shrink(one.size)
    assert budget.in_use == 0


def test_no_client_holds_the_whole_reserve() -> None:
    budget = MemoryBudget(LIMIT, MAIN)
    budget.allocation("192.0.2.1").grow(MAIN)
    kept = []
    while (one := budget.allocation("192.0.2.1")).try_grow(MAX_SMALL):
        kept.append(one)
    assert len(kept) < RESERVE // MAX_SMALL
    assert budget.allocation("192.0.2.2").try_grow(MAX_SMALL)


@pytest.mark.parametrize(
    ("address", "other", "same"),
    [
        ("192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("fe80::1%eth0", "fe80::2", True),
        (None, None, True),
    ],
)
def test_client_is_an_address_or_an_ipv6_network(address: str | None, other: str | None, same: bool) -> None:
    """An IPv6 client has a /64 (RFC 6177), and so 2**64 addresses."""
    budget = MemoryBudget(LIMIT, 8 * MB)
    first = budget.allocation(address)
    fill(first)
    assert budget.allocation(other).try_grow(MB) is not same
