"""A small HTTP/1.1 client with little overhead, as it shares the machine with the program under test."""

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any

import httptools


class TransientError(Exception):
    """The connection ended before the response was complete."""


@dataclass
class Answer:
    """A complete response."""

    status: int = 0
    body: bytearray = field(default_factory=bytearray)


class Connection(asyncio.Protocol):
    """One connection, for one request after the other."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._answer = Answer()
        self._done: asyncio.Future[Answer] | None = None
        # Set when a part of a body has arrived.
        self.some = asyncio.Event()

    @classmethod
    async def open(cls, port: int) -> "Connection":
        """Connect to 127.0.0.1. Raises OSError."""
        _, connection = await asyncio.get_running_loop().create_connection(cls, "127.0.0.1", port)
        return connection

    @property
    def is_open(self) -> bool:
        """Whether another request can be sent."""
        return self.transport is not None and not self.transport.is_closing()

    def post(self, path: str, body: Any) -> asyncio.Future[Answer]:
        """Send a request; return a future of its response, which may raise TransientError."""
        data = json.dumps(body).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {len(data)}"
        )
        self._answer, self._parser = Answer(), httptools.HttpResponseParser(self)
        self._done = asyncio.get_running_loop().create_future()
        self.some.clear()
        if self.transport is None or self.transport.is_closing():
            self._done.set_exception(TransientError("closed before the request"))
        else:
            self.transport.write(head.encode() + b"\r\n\r\n" + data)
        return self._done

    def close(self) -> None:
        """Close the connection."""
        if self.transport is not None:
            self.transport.close()

    # Callbacks of asyncio and httptools.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Store the transport."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """Parse the bytes."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(f"no HTTP: {error}")

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail the pending response."""
        self._fail(str(exc or "closed in the middle"))

    def on_body(self, body: bytes) -> None:
        """Append to the body."""
        self._answer.body += body
        self.some.set()

    def on_message_complete(self) -> None:
        """Complete the response."""
        self._answer.status = self._parser.get_status_code()
        keeps = self._parser.should_keep_alive()
        if self._done is not None and not self._done.done():
            self._done.set_result(self._answer)
        if not keeps:
            self.close()

    def _fail(self, reason: str) -> None:
        if self._done is not None and not self._done.done():
            self._answer.status = 0
            self._done.set_exception(TransientError(reason))


async def get(port: int, path: str) -> bytes:
    """Return the body of one GET over a new connection. Raises OSError."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
        return (await reader.read()).partition(b"\r\n\r\n")[2]
    finally:
        writer.close()


async def set_switches(port: int, **switches: Any) -> None:
    """Set switches of a fake backend. Raises OSError and TransientError."""
    connection = await Connection.open(port)
    try:
        await connection.post("/_switches", switches)
    finally:
        connection.close()
