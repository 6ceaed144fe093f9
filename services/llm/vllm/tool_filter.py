"""Requests with tools to a model of vLLM that cannot call them by itself.

vLLM would render the prompt without them, or reject `auto` if it has no parser.
"""

import json
from collections.abc import Callable
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kit.errors import respond
from services.llm.validation.tool_choice import IGNORED, is_call_demanded, no_tool_calling

PATHS = frozenset({"/v1/chat/completions", "/v1/responses", "/v1/messages", "/v1/messages/count_tokens"})
# Members of a request that offer tools, `functions` in their older form; all members that only concern tools.
OFFERS = ("tools", "functions")
MEMBERS = frozenset({*OFFERS, "tool_choice", "parallel_tool_calls", "function_call"})
HEADERS = [(name.encode(), value.encode()) for name, value in IGNORED.items()]


class ToolFilter:
    """vLLM's application, with tools removed from requests that permit a response without a call.

    Demanded calls are structured output, which vLLM enforces on any model if it has a parser (docs.vllm.ai,
    features/tool_calling, "Named Function Calling"): with `can_force` they pass, else they are rejected.
    """

    def __init__(self, app: ASGIApp, model: str, *, can_force: bool) -> None:
        self._app = app
        self._model = model
        self._can_force = can_force

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection scope."""
        if scope["type"] != "http" or scope["path"] not in PATHS or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        messages = [await receive()]
        while messages[-1].get("more_body"):
            messages.append(await receive())
        request = _request_with_tools(b"".join(message.get("body", b"") for message in messages))
        choice = request.get("tool_choice")
        if not request or choice in ("none", {"type": "none"}):
            await self._app(scope, _replay(messages, receive), send)
        elif is_call_demanded(choice):
            app = self._app if self._can_force else respond(no_tool_calling(self._model))
            await app(scope, _replay(messages, receive), send)
        elif is_call_demanded(request.get("function_call")):  # vLLM does not read the older form
            await respond(no_tool_calling(self._model))(scope, _replay(messages, receive), send)
        else:
            body = json.dumps({name: value for name, value in request.items() if name not in MEMBERS}).encode()
            headers = [header for header in scope["headers"] if header[0] != b"content-length"]
            headers.append((b"content-length", b"%d" % len(body)))
            whole: Message = {"type": "http.request", "body": body, "more_body": False}
            await self._app({**scope, "headers": headers}, _replay([whole], receive), _with_header(send))


def _request_with_tools(content: bytes) -> dict[str, Any]:
    """Return the body if it offers tools, else an empty object; an invalid one is for vLLM to reject."""
    if not any(b'"%b"' % name.encode() in content for name in OFFERS):
        return {}
    try:
        request = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return request if isinstance(request, dict) and any(request.get(name) for name in OFFERS) else {}


def _replay(messages: list[Message], receive: Receive) -> Receive:
    """Return a `receive` that repeats `messages` first."""

    async def again() -> Message:
        return messages.pop(0) if messages else await receive()

    return again


def _with_header(send: Send) -> Callable[[Message], Any]:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] < 400:
            message["headers"] = [*message.get("headers", []), *HEADERS]
        await send(message)

    return sending
