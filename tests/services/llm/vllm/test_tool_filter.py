"""Tools in requests to vLLM's application, for a model that cannot call them by itself."""

import json
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse

from kit.errors import InvalidRequest
from services.llm.validation import requests
from services.llm.vllm.tool_filter import ToolFilter
from tests.kit.served import serve

PATHS = ["/v1/chat/completions", "/v1/responses", "/v1/messages", "/v1/messages/count_tokens"]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}


def vllm(*, has_parser: bool) -> FastAPI:
    """Repeats a request, and rejects tools without a parser (vllm/renderers/online_renderer.py: render_chat)."""
    app = FastAPI()

    @app.post("/{path:path}")
    async def any_path(path: str, request: Request) -> Any:
        try:
            body = requests.parse(await request.body())
        except InvalidRequest as error:
            return JSONResponse(error.body(), 400)
        if body.get("tools") and body.get("tool_choice", "auto") != "none" and not has_parser:
            return JSONResponse({"error": {"message": "requires --tool-call-parser"}}, 400)
        if body.get("stream"):
            return StreamingResponse(iter([f"data: {json.dumps(body)}\n\n"]), media_type="text/event-stream")
        return body

    return app


@pytest.fixture(scope="module", params=[True, False], ids=["parser", "no parser"])
def client(request: pytest.FixtureRequest) -> Iterator[httpx2.Client]:
    app = ToolFilter(vllm(has_parser=request.param), "llava", can_force=request.param)
    with serve(app) as (host, port), httpx2.Client(base_url=f"http://{host}:{port}") as client:
        client.headers["x-parser"] = str(request.param)
        yield client


def echo(answer: httpx2.Response) -> Any:
    assert answer.status_code == 200, answer.text
    return json.loads(answer.text.removeprefix("data: "))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("choice", ["absent", None, "auto", {"type": "auto"}])
def test_tools_are_removed_and_the_header_says_so(client: httpx2.Client, path: str, stream: bool, choice: Any) -> None:
    """Open WebUI sends them with every chat; without a parser vLLM rejects `auto`, the default."""
    body: dict[str, Any] = {"messages": [{"role": "user", "content": "hé \u2028"}], "stream": stream, "seed": 2**60}
    tools = {"tools": [TOOL] * 36, "parallel_tool_calls": True, "tool_choice": choice}
    if choice == "absent":
        del tools["tool_choice"]
    answer = client.post(path, json=body | tools)
    assert echo(answer) == body
    assert answer.headers["x-tools"] == "ignored"


def test_older_form_is_removed(client: httpx2.Client) -> None:
    answer = client.post(PATHS[0], json={"n": 1, "functions": [{"name": "f"}], "function_call": "auto"})
    assert (echo(answer), answer.headers["x-tools"]) == ({"n": 1}, "ignored")


def test_demanded_call_in_the_older_form_is_rejected(client: httpx2.Client) -> None:
    """vLLM would answer without the call."""
    answer = client.post(PATHS[0], json={"functions": [{"name": "f"}], "function_call": {"name": "f"}})
    assert answer.status_code == 400
    assert "does not support tool calling" in answer.json()["error"]["message"]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "f"}}, {"type": "any"}])
def test_demanded_call_is_structured_output_or_rejected(client: httpx2.Client, path: str, choice: Any) -> None:
    """vLLM's documentation: named and required calls work with every model, given a parser."""
    body = {"tools": [TOOL], "tool_choice": choice}
    answer = client.post(path, json=body)
    if client.headers["x-parser"] == "True":
        assert echo(answer) == body
    else:
        assert answer.status_code == 400
        assert "Model 'llava' does not support tool calling." in answer.json()["error"]["message"]
        assert answer.json().get("type") == ("error" if "messages" in path else None)
    assert "x-tools" not in answer.headers


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [{"role": "tool", "tool_call_id": "c", "content": '"tools"'}]},
        {"messages": [{"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "f"}}]}]},
        {"tools": [], "tool_choice": "auto"},
        {"tools": None},
        {"tools": [TOOL], "tool_choice": "none"},
    ],
)
def test_other_requests_are_unchanged(client: httpx2.Client, body: dict[str, Any]) -> None:
    """Also the history of a conversation with tools."""
    answer = client.post(PATHS[0], json=body)
    assert echo(answer) == body
    assert "x-tools" not in answer.headers


def test_invalid_and_long_bodies_reach_vllm(client: httpx2.Client) -> None:
    for content in (b'["tools"]', b'{"tools":', b'{"tools": "\xff"}'):
        assert "The body" in client.post(PATHS[0], content=content).json()["error"]["message"]
    body = {"prompt": "x" * 3_000_000}
    assert echo(client.post(PATHS[0], json=body | {"tools": [TOOL]})) == body
    assert echo(client.post("/v1/completions", json={"tools": [TOOL], "tool_choice": "none"}))["tools"] == [TOOL]
