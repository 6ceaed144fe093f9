"""A name's addresses: what the resolver says, what it fails to say, and how long it may take."""

import asyncio
import socket

import pytest

from kit.net.dns_lookup import Lookup, NoSuchName, ResolverFailed
from tests.support.resolver import FAILING, GONE, FakeResolver


@pytest.fixture
async def resolver(monkeypatch: pytest.MonkeyPatch) -> FakeResolver:
    """The resolver of the test's loop."""
    return FakeResolver(monkeypatch)


async def test_the_systems_own_resolver_is_asked() -> None:
    """Loopback has its address, by name and by number."""
    assert "127.0.0.1" in await Lookup("127.0.0.1").addresses(5)
    assert set(await Lookup("localhost").addresses(5)) <= {"127.0.0.1", "::1"}


async def test_addresses_are_sorted_and_single(resolver: FakeResolver) -> None:
    """By number, each once."""
    resolver.answers["x"] = ["10.0.0.10", "10.0.0.9", "10.0.0.10"]
    assert await Lookup("x").addresses(5) == ("10.0.0.9", "10.0.0.10")


async def test_a_place_with_both_families_is_one(resolver: FakeResolver) -> None:
    """IPv4 where there is any: a container with two addresses must not count twice."""
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
async def test_no_such_name_is_not_a_failing_resolver(
    resolver: FakeResolver, error: Exception, kind: type[Exception]
) -> None:
    """One is an answer, the other is none."""
    resolver.answers["x"] = error
    with pytest.raises(kind):
        await Lookup("x").addresses(5)


async def test_no_name_at_all() -> None:
    """What cannot be a name is told as such, not raised as a bug."""
    with pytest.raises(ResolverFailed, match="label"):
        await Lookup("a" * 70 + ".example").addresses(5)


async def test_a_resolver_that_hangs_is_asked_once(resolver: FakeResolver) -> None:
    """Each call ends in time, none asks anew while a question is under way, and its answer counts when it comes."""
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


async def test_closing_ends_the_question(resolver: FakeResolver) -> None:
    """Nothing is left over; closing twice is fine."""
    resolver.answers["x"] = ["10.0.0.9"]
    resolver.hanging["x"] = asyncio.Event()
    lookup = Lookup("x")
    before = asyncio.all_tasks()
    with pytest.raises(ResolverFailed):
        await lookup.addresses(0.01)
    (question,) = asyncio.all_tasks() - before
    lookup.close()
    lookup.close()
    await asyncio.wait({question}, timeout=5)
    assert question.cancelled()
