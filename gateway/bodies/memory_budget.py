"""The memory budget of request bodies: all count, on whatever route, except short ones that arrive whole.

A client, an IPv4 address or an IPv6 /64, may hold SHARE times what it leaves free: alone three quarters of the budget,
beside another one three sevenths each. So there is always room for one more client. The rule is that of shared packet
buffers (Choudhury and Hahne, "Dynamic queue length thresholds for shared-memory packet switches", 1998); the spool
follows it too. Part of the budget is a reserve that only small bodies use, once they find no other place.
"""

import ipaddress
import weakref

from kit.errors import Busy

# What a client may hold, as a multiple of what is free then.
SHARE = 3
# One part in so many of the budget is the reserve for bodies up to MAX_SMALL, in bytes.
RESERVE_PARTS = 8
MAX_SMALL = 64 * 1024
# A body up to this length, in bytes, that arrives whole in one read is not counted: the objects of its connection take
# more, and counting it would take as long as choosing its backend.
MAX_UNCOUNTED = 4096
# Retry-After when the budget is exhausted, in seconds.
RETRY_AFTER_S = 5.0


class MemoryBudget:
    """The bytes that are available for bodies in memory, and those that each client holds."""

    def __init__(self, limit: int, max_body: int) -> None:
        """`limit` and `max_body`, the largest body, are in bytes."""
        reserve = limit // RESERVE_PARTS
        size = max(limit - reserve, max_body)
        # The largest body fits into an empty budget, whatever the settings.
        self._main = Pool(size, max_body)
        self._reserve = Pool(reserve)
        # As long as an allocation of theirs exists.
        self._clients: weakref.WeakValueDictionary[str, Client] = weakref.WeakValueDictionary()

    @property
    def in_use(self) -> int:
        """How many bytes wait in memory."""
        return sum(pool.size - pool.free for pool in (self._main, self._reserve))

    def allocation(self, address: str | None) -> "Allocation":
        """Return an empty allocation for the client with this IP address."""
        name = _client_name(address or "")
        client = self._clients.get(name)
        if client is None:
            client = self._clients[name] = Client(Share(self._main), Share(self._reserve))
        return Allocation(client)


class Allocation:
    """The bytes that one connection or request holds in memory."""

    __slots__ = ("_main", "_share", "client", "size")

    def __init__(self, client: "Client") -> None:
        self.size = 0
        self.client = client
        self._main = client.main
        # The one that the bytes count against: main or reserve.
        self._share = client.main

    def try_grow(self, count: int) -> bool:
        """Add `count` bytes if the budget and the client's share permit; return whether they do."""
        share, main = self._share, self._main
        if share is main:
            # `try_take`, inlined: nearly all requests need no more.
            pool = main.pool
            free, held = pool.free - count, main.held + count
            if free >= 0 and (held <= SHARE * free or held <= pool.floor):
                pool.free, main.held = free, held
                self.size += count
                return True
        size = self.size + count
        is_small = size <= MAX_SMALL
        if share is not main and is_small and share.try_take(count):
            self.size = size
            return True
        other = self.client.reserve if share is main else main
        if (other is main or is_small) and other.try_take(size):
            share.give(self.size)
            self._share, self.size = other, size
            return True
        return False

    def grow(self, count: int) -> None:
        """Add `count` bytes. Raises Busy if the budget or the client's share does not permit it."""
        if self.try_grow(count):
            return
        if self._main.pool.free < self.size + count:
            message = "The request bodies in memory have reached MAX_BUFFERED_MB. Try again in a moment."
        else:
            message = (
                "This client's requests in flight fill its share of the memory for bodies (MAX_BUFFERED_MB). "
                "Try again when one of them has ended."
            )
        raise Busy(message, retry_after=RETRY_AFTER_S)

    def shrink(self, count: int) -> None:
        """Return `count` bytes to the budget."""
        share = self._share
        share.pool.free += count
        share.held -= count
        self.size -= count
        if not self.size:
            self._share = self._main


class Pool:
    """Bytes that clients share. A client may always hold `floor` bytes of them, if they are free."""

    __slots__ = ("floor", "free", "size")

    def __init__(self, size: int, largest: int = 0) -> None:
        """A body of `largest` bytes fits into an empty pool of at least this size, also if it is more than a share."""
        self.size = self.free = size
        self.floor = largest if SHARE * (size - largest) < largest <= size else 0


class Share:
    """What one client holds of a pool."""

    __slots__ = ("held", "pool")

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.held = 0

    def try_take(self, count: int) -> bool:
        """Take `count` bytes if the pool and the client's share permit; return whether they do."""
        pool = self.pool
        free, held = pool.free - count, self.held + count
        if free < 0 or (held > SHARE * free and held > pool.floor):
            return False
        pool.free, self.held = free, held
        return True

    def give(self, count: int) -> None:
        """Return `count` bytes to the pool."""
        self.pool.free += count
        self.held -= count


class Client:
    """The shares of one client."""

    __slots__ = ("__weakref__", "main", "reserve")

    def __init__(self, main: Share, reserve: Share) -> None:
        self.main = main
        self.reserve = reserve


def _client_name(address: str) -> str:
    """Return what all addresses of one client have in common: an IPv6 client has a /64 (RFC 6177)."""
    if ":" not in address:
        return address
    ip = ipaddress.IPv6Address(address.partition("%")[0])
    return str(ip.ipv4_mapped or ipaddress.IPv6Network((int(ip) >> 64 << 64, 64)))
