"""`python -m bench.peers.llm_stub bare|service`: an engine that responds at once, bare or behind the text service.

The difference between the two is the service's overhead per request. PORT and the service's other settings come from
the environment.
"""

import functools
import os
import sys
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from kit.service.service import Report
from kit.web.server import run
from services.llm.app import Service, create
from services.llm.settings import LlmSettings

ANSWER = (
    b'{"id":"chatcmpl-0123456789abcdef","object":"chat.completion","created":1795000000,"model":"bench","choices":'
    b'[{"index":0,"message":{"role":"assistant","content":"AI is when machines do what needs thought.","refusal":null},'
    b'"logprobs":null,"finish_reason":"stop"}],"usage":{"prompt_tokens":36,"completion_tokens":9,"total_tokens":45}}'
)
HEAD = [(b"content-type", b"application/json"), (b"content-length", str(len(ANSWER)).encode())]


async def answer(scope: Scope, receive: Receive, send: Send) -> None:
    """Read a request and respond."""
    if scope["type"] != "http":
        return
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": HEAD})
    await send({"type": "http.response.body", "body": ANSWER})


class Stub:
    """The stub as an engine of the service."""

    name = "stub"
    device = "cpu"
    app: ASGIApp = staticmethod(answer)

    async def interrupt(self) -> None:
        """Do nothing: no request takes time."""

    async def aclose(self) -> None:
        """Do nothing."""


async def open_stub(_service: Service, _settings: LlmSettings, _folder: Path, _report: Report) -> Stub:
    """Return the stub."""
    return Stub()


def main() -> None:
    """Serve until SIGTERM."""
    if sys.argv[1] == "service":
        run("llm", LlmSettings, functools.partial(create, open_engine=open_stub))
    else:
        uvicorn.run(
            answer, host="127.0.0.1", port=int(os.environ["PORT"]), lifespan="off", log_config=None, access_log=False
        )


if __name__ == "__main__":
    main()
