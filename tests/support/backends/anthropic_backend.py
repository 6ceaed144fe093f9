"""A fake backend for Anthropic's Messages API, streamed or not, as vLLM implements it at /v1/messages."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

MODEL = "qwen"
TOKENS = ["Hello", ", ", "world"]
USAGE = {"input_tokens": 3, "output_tokens": len(TOKENS)}


class AnthropicBackend:
    """The server. With `endless` a stream continues until its client disconnects, which sets `left`.

    `refusal` is the status, content type and body of every response.
    """

    def __init__(self) -> None:
        self.endless = False
        self.refusal: tuple[int, str, bytes] | None = None
        self.asked: list[Any] = []
        self.left = asyncio.Event()
        self.url = ""

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["AnthropicBackend"]:
        """Serve on a free port."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
            length = next((int(line[15:]) for line in head.split("\r\n") if line.startswith("content-length:")), 0)
            body = await reader.readexactly(length)
            if head.startswith("get "):
                health = {"status": "healthy", "model": MODEL, "kind": "llm", "service": "text"}
                _send(writer, "application/json", json.dumps(health).encode())
                return
            asked = json.loads(body)
            self.asked.append(asked)
            if self.refusal is not None:
                _send_all(writer, *self.refusal)
            elif head.startswith("post /v1/messages/count_tokens "):
                _send(writer, "application/json", json.dumps({"input_tokens": USAGE["input_tokens"]}).encode())
            elif asked.get("stream"):
                await self._stream(reader, writer)
            else:
                _send(writer, "application/json", json.dumps(_message("".join(TOKENS))).encode())
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        _send(writer, "text/event-stream", b"")
        _event(writer, "message_start", message=_message("") | {"content": [], "stop_reason": None})
        _event(writer, "content_block_start", index=0, content_block={"type": "text", "text": ""})
        for token in TOKENS:
            _event(writer, "content_block_delta", index=0, delta={"type": "text_delta", "text": token})
        await writer.drain()
        if self.endless:
            # The client sends nothing more, so a read returns at the end of its connection.
            await reader.read(1)
            self.left.set()
            return
        _event(writer, "content_block_stop", index=0)
        _event(writer, "message_delta", delta={"stop_reason": "end_turn", "stop_sequence": None}, usage=USAGE)
        _event(writer, "message_stop")
        await writer.drain()


def _message(text: str) -> dict[str, Any]:
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": MODEL,
        "content": [{"type": "text", "text": text}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": USAGE,
    }


def _send(writer: asyncio.StreamWriter, media: str, body: bytes) -> None:
    """Send a header and a body that ends with the connection."""
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nConnection: close\r\n\r\n%b" % (media.encode(), body))


def _send_all(writer: asyncio.StreamWriter, status: int, media: str, body: bytes) -> None:
    head = f"HTTP/1.1 {status} Error\r\nContent-Type: {media}\r\nContent-Length: {len(body)}\r\nRetry-After: 7\r\n"
    writer.write(head.encode() + b"Connection: close\r\n\r\n" + body)


def _event(writer: asyncio.StreamWriter, kind: str, **fields: Any) -> None:
    writer.write(f"event: {kind}\ndata: {json.dumps({'type': kind} | fields)}\n\n".encode())
