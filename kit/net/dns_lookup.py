"""The addresses behind a host name, asked of the system's resolver off the event loop and within a deadline."""

import asyncio
import ipaddress
import socket
from typing import Any

# What a resolver says that works and knows no such name. Anything else (EAI_AGAIN) is a resolver that fails for now;
# Docker's own says that, too, of a name that it does not know, where its network has no way out.
_NO_SUCH_NAME = frozenset(
    getattr(socket, code) for code in ("EAI_NONAME", "EAI_NODATA", "EAI_ADDRFAMILY") if hasattr(socket, code)
)


class NoSuchName(Exception):
    """The resolver works, and knows no address for this name."""


class ResolverFailed(Exception):
    """The resolver did not say, for a reason that may pass."""


class Lookup:
    """One name, as often as it is asked for.

    Never more than one question is under way: where a resolver hangs, each holds one of the few threads there are.
    """

    def __init__(self, host: str) -> None:
        self.host = host
        self._asking: asyncio.Future[list[Any]] | None = None

    async def addresses(self, within_s: float) -> tuple[str, ...]:
        """All addresses, in order of their numbers, of one family: what has both IPv4 and IPv6 is one place, not two.

        Raises NoSuchName and ResolverFailed, the latter also after `within_s` seconds; the question then goes on, and
        its answer is that of the next call.
        """
        asking = self._asking
        if asking is None:
            loop = asyncio.get_running_loop()
            asking = self._asking = asyncio.ensure_future(
                loop.getaddrinfo(self.host, None, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
            )
        done, _ = await asyncio.wait({asking}, timeout=within_s)
        if not done:
            raise ResolverFailed(f"no answer within {within_s:g} s")
        if self._asking is asking:
            self._asking = None
        try:
            found = {ipaddress.ip_address(info[4][0]) for info in asking.result()}
        except socket.gaierror as error:
            kind = NoSuchName if error.errno in _NO_SUCH_NAME else ResolverFailed
            raise kind(error.strerror or str(error)) from error
        except (OSError, UnicodeError) as error:
            raise ResolverFailed(str(error) or type(error).__name__) from error
        version = min((address.version for address in found), default=4)
        return tuple(str(address) for address in sorted(found, key=int) if address.version == version)

    def close(self) -> None:
        """Give up the question that is under way."""
        if self._asking is not None:
            self._asking.cancel()
            self._asking = None
