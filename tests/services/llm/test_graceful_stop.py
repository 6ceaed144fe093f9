"""Graceful stop with responses in progress."""

import asyncio
import sys
from pathlib import Path

import httpx2
import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from kit.web.server import server_config
from services.llm.graceful_stop import NOTIFY_S, InterruptingServer
from tests.services.llm.process import ServiceProcess, interrupted


class Endless:
    """Streams until it is interrupted."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.over = asyncio.Event()
        self.interruptions = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"token\n", "more_body": True})
        self.begun.set()
        await self.over.wait()
        await send({"type": "http.response.body", "body": b"error\n"})

    async def interrupt(self) -> None:
        self.interruptions += 1
        self.over.set()


async def read_during_stop(app: Endless, *, in_progress: bool) -> str:
    """Return what a client reads if the server stops during its response, or just after it."""
    grace = NOTIFY_S if in_progress else 600
    config = server_config(app, host="127.0.0.1", port=0, lifespan="off", timeout_graceful_shutdown=grace)
    server = InterruptingServer(config, app.interrupt)
    serving = asyncio.create_task(uvicorn.Server.serve(server))
    try:
        while not server.started:  # noqa: ASYNC110  # uvicorn has no event for it
            await asyncio.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        async with httpx2.AsyncClient() as client:
            reading = asyncio.create_task(client.get(f"http://127.0.0.1:{port}/"))
            await app.begun.wait()
            if not in_progress:
                app.over.set()
                await reading
            server.should_exit = True
            return (await reading).text
    finally:
        server.should_exit = True
        await serving


async def test_responses_are_interrupted_at_the_end_of_the_grace_period() -> None:
    app = Endless()
    assert await read_during_stop(app, in_progress=True) == "token\nerror\n"
    assert app.interruptions == 1


async def test_nothing_is_interrupted_without_responses_in_progress() -> None:
    app = Endless()
    assert await read_during_stop(app, in_progress=False) == "token\nerror\n"
    assert app.interruptions == 0


@pytest.mark.engines
def test_stop_ends_a_stream_with_an_error_event(tmp_path: Path, smollm2: Path) -> None:
    entry = {"kind": "llm", "hf_repo": "org/tiny", "context_length": 2048}
    settings = {"ENGINE": "transformers", "MODEL_DIR": str(smollm2), "STOP_GRACE": "1"}
    service = ServiceProcess(sys.executable, tmp_path, entry, **settings)
    try:
        service.until("healthy")
        event, last = interrupted(service, "/v1/chat/completions")
        assert event["error"]["code"] == "service_stopping"
        assert last == "data: [DONE]"
        assert service.left_behind() == []
    finally:
        service.kill()
