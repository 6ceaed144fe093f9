"""Leases: one holder over everything that shares a store, and none for ever."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from registry.store.interface import Store
from registry.store.lease import HELD_S, RENEW_S, LeaseTaken, lease


class Clock:
    """A time that tests set."""

    def __init__(self) -> None:
        self.now = 1e9

    def __call__(self) -> float:
        return self.now


def test_one_at_a_time(store: Store) -> None:
    """The second is told who is at it; when the first has ended, it may."""
    with lease(store, "x", "first"):
        says = r"second has to wait: another one is at work in .*, first of .* process"
        with pytest.raises(LeaseTaken, match=says), lease(store, "x", "second"):
            pass
        with lease(store, "y", "another thing"):
            pass
    for _ in range(3):
        with lease(store, "x", "second"):
            pass
    assert len(store.list_documents("leases/x/")) == 1


def test_of_many_at_once_one_holds_it(store: Store) -> None:
    """Also when the lease before ran out, which all of them see at the same time."""
    clock = Clock()
    dead = ExitStack()
    dead.enter_context(lease(store, "x", "dead", clock))
    clock.now += HELD_S + 1

    def take(number: int) -> bool:
        try:
            held.enter_context(lease(store, "x", str(number), clock))
        except LeaseTaken:
            return False
        return True

    with ExitStack() as held:
        with ThreadPoolExecutor(8) as pool:
            assert sum(pool.map(take, range(8))) == 1
        dead.close()  # who ran out takes nothing from who holds it now
        assert not take(9)


def test_who_goes_on_keeps_it(store: Store) -> None:
    """Renewed for as long as the work takes; who was silent for too long is told that it lost it."""
    clock = Clock()
    with lease(store, "x", "long", clock) as renew:
        for _ in range(20):
            clock.now += RENEW_S + 1
            renew()
        with pytest.raises(LeaseTaken), lease(store, "x", "other", clock):
            pass
        clock.now += HELD_S + 1
        with lease(store, "x", "other", clock), pytest.raises(LeaseTaken, match="long was silent for too long"):
            renew()


def test_what_cannot_be_read_is_in_nobodys_way(store: Store) -> None:
    """A damaged document counts as given back."""
    store.put_document("leases/x/000000000007.json", {"holder": 1})
    with lease(store, "x", "next"):
        assert store.list_documents("leases/x/") == ["leases/x/000000000008.json"]
