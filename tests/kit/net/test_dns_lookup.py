"""DNS lookup: addresses, resolver errors, timeouts."""

import asyncio
import socket

import pytest

from kit.net.dns_lookup import Lookup, NoSuchName, ResolverFailed
from tests.support.resolver import FAILING, GONE, FakeResolver


@pytest.fixture
async def resolver(monkeypatch: pytest.MonkeyPatch) -> FakeResolver:
    """The resolver of the test's loop."""
    return FakeResolver(monkeypatch)


async def test_system_resolver_is_used() -> None:
    """Loopback resolves, by name and by address."""
    assert "127.0.0.1" in await Lookup("127.0.0.1").addresses(5)
    assert set(await Lookup("localhost").addresses(5)) <= {"127.0.0.1", "::1"}


async def test_addresses_are_sorted_and_unique(resolver: FakeResolver) -> None:
    """Numerically, not as text."""
    resolver.answers["x"] = ["10.0.0.10", "10.0.0.9", "10.0.0.10"]
    assert await Lookup("x").addresses(5) == ("10.0.0.9", "10.0.0.10")


async def test_host_with_both_families_counts_once(resolver: FakeResolver) -> None:
    """By its IPv4 address if it has one: a container with two addresses is one backend."""
    resolver.answers["x"] = ["fd00::1", "10.0.0.9"]
    assert await Lookup("x").addresses(5) == ("10.0.0.9",)
    resolver.answers["x"] = ["fd00::1"]
    assert await Lookup("x").addresses(5) == ("fd00::1",)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (GONE, NoSuchName),
        (socket.gaierror(socket.EAI_NODATA, "No address"), NoSuchName),
        (FAILING, ResolverFailed),
        (socket.gaierror(socket.EAI_FAIL, "Non-recoverable failure"), ResolverFailed),
        (OSError("no descriptor left"), ResolverFailed),
    ],
)
async def test_unknown_name_differs_from_failing_resolver(
    resolver: FakeResolver, error: Exception, kind: type[Exception]
) -> None:
    """The first is a result, the second is not."""
    resolver.answers["x"] = error
    with pytest.raises(kind):
        await Lookup("x").addresses(5)


async def test_invalid_name_is_a_resolver_error() -> None:
    """The codec's UnicodeError does not escape."""
    with pytest.raises(ResolverFailed, match="label"):
        await Lookup("a" * 70 + ".example").addresses(5)


async def test_hanging_resolver_gets_one_query(resolver: FakeResolver) -> None:
    """Each call times out, none sends a second query, and the result is used when it arrives."""
    resolver.answers["x"] = ["10.0.0.9"]
    resolver.hanging["x"] = asyncio.Event()
    lookup = Lookup("x")
    for _ in range(3):
        with pytest.raises(ResolverFailed, match=r"within 0\.01 s"):
            await lookup.addresses(0.01)
    assert resolver.asked["x"] == 1
    resolver.hanging["x"].set()
    both = await asyncio.gather(lookup.addresses(5), lookup.addresses(5))
    assert list(both) == [("10.0.0.9",), ("10.0.0.9",)]
    assert resolver.asked["x"] == 1


async def test_close_cancels_the_query(resolver: FakeResolver) -> None:
    """No task is left; closing twice is fine."""
    resolver.answers["x"] = ["10.0.0.9"]
    resolver.hanging["x"] = asyncio.Event()
    lookup = Lookup("x")
    before = asyncio.all_tasks()
    with pytest.raises(ResolverFailed):
        await lookup.addresses(0.01)
    (query,) = asyncio.all_tasks() - before
    lookup.close()
    lookup.close()
    await asyncio.wait({query}, timeout=5)
    assert query.cancelled()
