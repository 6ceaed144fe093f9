"""A gateway on a real socket in the test's own event loop, with fake backends behind it."""

import asyncio
import contextlib
import dataclasses
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import uvicorn

from gateway.app import SERVER_OPTIONS, create, timing_of
from gateway.backends.backend import Backend
from gateway.relay.data_plane import RelayContext
from gateway.settings import GatewaySettings
from tests.support.backends.openai_backend import FakeBackend

CATALOGUE = """
qwen: {kind: llm, hf_repo: Qwen/Qwen, revision: main, aliases: [fast], context_length: 32768, supports_tools: true}
tinyllama: {kind: llm, hf_repo: Tiny/Llama, revision: main, context_length: 2048}
llava: {kind: multimodal, hf_repo: llava-hf/llava, revision: main, context_length: 4096}
minilm: {kind: embedding, hf_repo: st/minilm, revision: main, aliases: [embedding], context_length: 256}
ranker: {kind: reranker, hf_repo: st/ranker, revision: main}
whisper: {kind: transcription, hf_repo: Systran/whisper, revision: main}
"""
# Nothing in a test is this slow: a wait that reaches it has hung.
HANG_S = 20.0


class RunningGateway:
    """A gateway that listens. `http` is a client for it."""

    def __init__(self, server: uvicorn.Server, port: int, http: httpx2.AsyncClient) -> None:
        self.server = server
        self.port = port
        self.http = http
        self.url = f"http://127.0.0.1:{port}"
        # Plain connections, ended with the test at the latest.
        self.writers: list[asyncio.StreamWriter] = []

    @property
    def context(self) -> RelayContext:
        """Its data plane."""
        context: RelayContext = self.server.lifespan.state["context"]
        return context

    def backend(self, name: str) -> Backend:
        """One of its backends."""
        found = self.context.backends.get(name)
        assert found is not None
        return found

    async def until(self, condition: Any) -> None:
        """Wait until `condition()` holds, looking whenever the loop has turned."""
        async with asyncio.timeout(HANG_S):
            while not condition():  # noqa: ASYNC110  # the state of plain objects has no event to wait on
                await asyncio.sleep(0.002)

    async def raw(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A plain connection to it."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.writers.append(writer)
        return reader, writer

    async def send_raw(self, data: bytes) -> bytes:
        """Send bytes; return all that comes until the gateway closes."""
        reader, writer = await self.raw()
        writer.write(data)
        async with asyncio.timeout(HANG_S):
            answer = await reader.read()
        writer.close()
        return answer

    async def chat(self, model: str | None = None, **more: Any) -> httpx2.Response:
        """One chat completion."""
        body = {"messages": [{"role": "user", "content": "Hi"}], **more}
        return await self.http.post("/v1/chat/completions", json=body if model is None else {"model": model, **body})


@contextlib.asynccontextmanager
async def running(
    folder: Path,
    *backends: FakeBackend,
    services: str = "",
    timing: dict[str, float] | None = None,
    models: str = CATALOGUE,
    **settings: Any,
) -> AsyncIterator[RunningGateway]:
    """Run a gateway in front of `backends`, which are already listening. `timing` overrides that of health checks."""
    catalogue = folder / "models.yaml"
    catalogue.write_text(models)
    listed = services or ",".join(f"{backend.name}={backend.url}" for backend in backends)
    defaults = {"poll_interval": 0.2, "poll_timeout": 2.0, "log_format": "json", "log_level": "warning"}
    settings = {**defaults, **settings, "services": listed, "catalogue": catalogue}
    loaded = GatewaySettings(**settings)
    app = create(loaded, timing=dataclasses.replace(timing_of(loaded), **(timing or {})))
    config = uvicorn.Config(app, log_config=None, access_log=False, server_header=False, **SERVER_OPTIONS)
    config.load()
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    listener = socket.create_server(("127.0.0.1", 0))
    await server.startup(sockets=[listener])
    port = listener.getsockname()[1]
    async with httpx2.AsyncClient(
        base_url=f"http://127.0.0.1:{port}", trust_env=False, verify=False, timeout=HANG_S
    ) as http:
        gateway = RunningGateway(server, port, http)
        try:
            yield gateway
        finally:
            for writer in gateway.writers:
                writer.transport.abort()
            for one in server.servers:
                one.close()
            listener.close()
            for connection in list(server.server_state.connections):
                connection.transport.abort()
            await asyncio.sleep(0)
            await server.lifespan.shutdown()


def post(body: Any, *headers: str, path: str = "/v1/chat/completions", host: str = "Host: localhost") -> bytes:
    """The bytes of a POST request with a JSON body."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"POST {path} HTTP/1.1", host, f"Content-Length: {len(data)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + data


def error_code(response: httpx2.Response) -> str:
    """The code of an error answer."""
    code: str = response.json()["error"]["code"]
    return code
