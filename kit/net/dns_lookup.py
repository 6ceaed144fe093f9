"""DNS lookup through the system's resolver, off the event loop and with a timeout."""

import asyncio
import ipaddress
import socket
from typing import Any

# The resolver works and the name does not exist. Other errors (EAI_AGAIN) mean that the resolver fails for now; that of
# Docker returns them also for unknown names if its network has no uplink.
_NO_SUCH_NAME = frozenset(
    getattr(socket, code) for code in ("EAI_NONAME", "EAI_NODATA", "EAI_ADDRFAMILY") if hasattr(socket, code)
)


class NoSuchName(Exception):
    """The name has no address."""


class ResolverFailed(Exception):
    """The resolver gave no result, for a reason that may pass."""


class Lookup:
    """Repeated lookups of one host name.

    At most one query is in flight: each query to a hanging resolver blocks one of the executor's few threads.
    """

    def __init__(self, host: str) -> None:
        self.host = host
        self._query: asyncio.Future[list[Any]] | None = None

    async def addresses(self, timeout_s: float) -> tuple[str, ...]:
        """Return all addresses of one family, sorted; a host with IPv4 and IPv6 addresses counts once, by IPv4.

        Raises NoSuchName and ResolverFailed, the latter also after `timeout_s` seconds: then the query continues, and
        the next call gets its result.
        """
        query = self._query
        if query is None:
            loop = asyncio.get_running_loop()
            query = self._query = asyncio.ensure_future(
                loop.getaddrinfo(self.host, None, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
            )
        done, _ = await asyncio.wait({query}, timeout=timeout_s)
        if not done:
            raise ResolverFailed(f"no response within {timeout_s:g} s")
        if self._query is query:
            self._query = None
        try:
            found = {ipaddress.ip_address(info[4][0]) for info in query.result()}
        except socket.gaierror as error:
            kind = NoSuchName if error.errno in _NO_SUCH_NAME else ResolverFailed
            raise kind(error.strerror or str(error)) from error
        except (OSError, UnicodeError) as error:
            raise ResolverFailed(str(error) or type(error).__name__) from error
        version = min((address.version for address in found), default=4)
        return tuple(str(address) for address in sorted(found, key=int) if address.version == version)

    def close(self) -> None:
        """Abandon the query in flight."""
        if self._query is not None:
            self._query.cancel()
            self._query = None
