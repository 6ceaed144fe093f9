"""A fake DNS resolver that replaces the event loop's for configured names."""

import asyncio
import socket
from typing import Any

import pytest

GONE = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
FAILING = socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")


class FakeResolver:
    """`answers` maps a name to its addresses or to an error; `asked` counts lookups. Other names go to the system.

    A lookup of a name in `hanging` waits for its event.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Replace the running loop's resolver."""
        self.answers: dict[str, list[str] | Exception] = {}
        self.asked: dict[str, int] = {}
        self.hanging: dict[str, asyncio.Event] = {}
        loop = asyncio.get_running_loop()
        self._real = loop.getaddrinfo
        monkeypatch.setattr(loop, "getaddrinfo", self._getaddrinfo)

    async def _getaddrinfo(self, host: Any, port: Any, **hints: Any) -> list[Any]:
        if host not in self.answers:
            return list(await self._real(host, port, **hints))
        self.asked[host] = self.asked.get(host, 0) + 1
        if host in self.hanging:
            await self.hanging[host].wait()
        answer = self.answers[host]
        if isinstance(answer, Exception):
            raise answer
        return [_info(address) for address in answer]


def _info(address: str) -> tuple[Any, ...]:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (address, 0)
