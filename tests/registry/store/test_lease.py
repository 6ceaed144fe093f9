"""Leases: one holder among all processes that share a store, and expiry."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from registry.store.interface import Store
from registry.store.lease import LEASE_S, RENEW_S, LeaseTaken, lease


class Clock:
    """A clock that tests set."""

    def __init__(self) -> None:
        self.now = 1e9

    def __call__(self) -> float:
        return self.now


def test_second_holder_is_refused_until_release(store: Store) -> None:
    """The error names the first."""
    with lease(store, "x", "first"):
        refusal = r"second cannot start: first of .* process .* holds the lease"
        with pytest.raises(LeaseTaken, match=refusal), lease(store, "x", "second"):
            pass
        with lease(store, "y", "another thing"):
            pass
    for _ in range(3):
        with lease(store, "x", "second"):
            pass
    assert len(store.list_documents("leases/x/")) == 1


def test_one_of_many_acquires_an_expired_lease(store: Store) -> None:
    clock = Clock()
    dead = ExitStack()
    dead.enter_context(lease(store, "x", "dead", clock))
    clock.now += LEASE_S + 1

    def acquire(number: int) -> bool:
        try:
            held.enter_context(lease(store, "x", str(number), clock))
        except LeaseTaken:
            return False
        return True

    with ExitStack() as held:
        with ThreadPoolExecutor(8) as pool:
            assert sum(pool.map(acquire, range(8))) == 1
        dead.close()  # the expired holder does not release the lease of the new one
        assert not acquire(9)


def test_renewed_lease_is_kept_and_expired_lease_is_lost(store: Store) -> None:
    clock = Clock()
    with lease(store, "x", "long", clock) as renew:
        for _ in range(20):
            clock.now += RENEW_S + 1
            renew()
        with pytest.raises(LeaseTaken), lease(store, "x", "other", clock):
            pass
        clock.now += LEASE_S + 1
        with lease(store, "x", "other", clock), pytest.raises(LeaseTaken, match="long lost its lease"):
            renew()


def test_unreadable_lease_counts_as_released(store: Store) -> None:
    store.put_document("leases/x/000000000007.json", {"holder": 1})
    with lease(store, "x", "next"):
        assert store.list_documents("leases/x/") == ["leases/x/000000000008.json"]
