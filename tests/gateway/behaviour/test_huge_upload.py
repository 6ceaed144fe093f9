"""A 2 GB upload through the gateway program in constant memory."""

import asyncio
import re
from collections.abc import AsyncIterator, Iterator

import psutil
import pytest
import pytest_asyncio

from tests.gateway.programs import Programs, free_port

SIZE = 2 * 1024**3
PIECE = 1024 * 1024
# What the gateway may hold more than before, in bytes.
GROWTH = 32 * 1024 * 1024
WITHIN_S = 300

FIRST = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
LAST = b'\r\n--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nfast\r\n--b--\r\n'


class Sink:
    """A transcription service that counts what it gets and keeps none of it."""

    def __init__(self) -> None:
        self.port = 0
        self.got = 0
        self.end = b""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        answer = b'{"status": "healthy", "kind": "transcription", "model": "whisper"}'
        if head.startswith(b"POST "):
            found = re.search(rb"(?i)\r\ncontent-length: (\d+)\r\n", head)
            assert found is not None
            left = int(found[1])
            while left:
                piece = await reader.read(min(left, PIECE))
                assert piece
                left -= len(piece)
                self.got += len(piece)
                self.end = (self.end + piece)[-len(LAST) - 8 :]
            answer = b'{"text": "long"}'
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b" % (len(answer), answer))
        writer.close()


@pytest_asyncio.fixture
async def sink() -> AsyncIterator[Sink]:
    """It listens."""
    sink = Sink()
    async with await asyncio.start_server(sink.serve, "127.0.0.1", 0) as server:
        sink.port = server.sockets[0].getsockname()[1]
        yield sink


def pieces() -> Iterator[bytes]:
    """The form, its model last and by a name that must be replaced."""
    yield FIRST
    sound = bytes(range(256)) * (PIECE // 256)
    for _ in range(SIZE // PIECE):
        yield sound
    yield LAST


@pytest.mark.engines
@pytest.mark.timeout(WITHIN_S)
async def test_two_gigabyte_upload_in_constant_memory(sink: Sink, programs: Programs) -> None:
    """Every byte arrives, with the model's name replaced at the end."""
    catalogue = programs.folder / "models.yaml"
    catalogue.write_text("whisper: {kind: transcription, hf_repo: a/whisper, revision: main, aliases: [fast]}\n")
    port = free_port()
    program = await asyncio.to_thread(
        programs.start,
        "gateway",
        until="startup complete",
        PORT=str(port),
        SERVICES=f"transcription=http://127.0.0.1:{sink.port};kind=transcription;models=whisper",
        CATALOGUE=str(catalogue),
        SPOOL_DIR=str(programs.folder),
        MAX_UPLOAD_MB="2100",
    )
    process = psutil.Process(program.pid)
    before = most = process.memory_info().rss
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    length = SIZE + len(FIRST) + len(LAST)
    head = "POST /v1/audio/transcriptions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    head += f"Content-Type: multipart/form-data; boundary=b\r\nContent-Length: {length}\r\n\r\n"
    writer.write(head.encode())
    for piece in pieces():
        writer.write(piece)
        await writer.drain()
        most = max(most, process.memory_info().rss)
    answered = asyncio.create_task(reader.read())
    while not answered.done():
        await asyncio.wait((answered,), timeout=0.05)
        most = max(most, process.memory_info().rss)
    writer.close()
    assert answered.result().startswith(b"HTTP/1.1 200 ")
    assert sink.got == length - len("fast") + len("whisper")
    assert b"\r\n\r\nwhisper\r\n--b--" in sink.end
    assert most - before < GROWTH
