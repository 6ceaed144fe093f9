"""The simulated servers over sockets: one process, one port each, prompts processed in turn, responses concurrently.

    python -m bench.routing.live_server 9001:1 9002:1 9003:1 9004:0.1

Each argument is a port and a speed. It sleeps in place of a model and uses almost no CPU; times are those of `servers`
divided by FASTER.
"""

import asyncio
import contextlib
import json
import sys

from bench.routing.servers import BASE_S, INTERFERENCE, PER_KB_S, TOKEN_S

# Speed-up over the simulation.
FASTER = 4.0
MODEL = "model"
_HEALTH = json.dumps({"status": "healthy", "service": "text", "kind": "llm", "model": MODEL}).encode()


class LiveServer:
    """One server."""

    def __init__(self, speed: float) -> None:
        self._speed = speed * FASTER
        self._reading = asyncio.Lock()
        self._running = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve the requests of one connection."""
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
                length = next((int(line[15:]) for line in head.split("\r\n") if line.startswith("content-length:")), 0)
                body = await reader.readexactly(length)
                if head.startswith("get "):
                    writer.write(_head("application/json", f"Content-Length: {len(_HEALTH)}") + _HEALTH)
                else:
                    await self._answer(json.loads(body), len(body), writer)
                await writer.drain()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    async def _answer(self, asked: dict[str, int], length: int, writer: asyncio.StreamWriter) -> None:
        async with self._reading:
            slower = 1 + INTERFERENCE * self._running
            await asyncio.sleep((BASE_S + PER_KB_S * length / 1024) * slower / self._speed)
        self._running += 1
        try:
            writer.write(_head("text/event-stream", "Transfer-Encoding: chunked") + _chunk(b'data: {"n": 0}\n\n'))
            await writer.drain()
            await asyncio.sleep(asked["max_tokens"] * TOKEN_S / self._speed)
            writer.write(_chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")
        finally:
            self._running -= 1


def _head(media: str, framing: str) -> bytes:
    return f"HTTP/1.1 200 OK\r\nContent-Type: {media}\r\n{framing}\r\n\r\n".encode()


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def _main(arguments: list[str]) -> None:
    for port, speed in (one.split(":") for one in arguments):
        await asyncio.start_server(LiveServer(float(speed)).serve, "127.0.0.1", int(port))
    await asyncio.Event().wait()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_main(sys.argv[1:]))
