"""A resolver whose answers a test sets: stands where the event loop asks the system's, for the names it was told of."""

import asyncio
import socket
from typing import Any

import pytest

GONE = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
FAILING = socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")


class FakeResolver:
    """`answers` maps a name to its addresses, or to the error of asking; `asked` counts. Other names go through.

    A name in `hanging` gets no answer until it is taken out of there.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Take the place of the running loop's resolver."""
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
