"""What `kit.web.client_connection` uses of uvicorn's HttpToolsProtocol beyond its documented API.

uvicorn may change these in any release; the test fails before a request does. `tests/gateway/relay` has the gateway's.
"""

import ast
import asyncio
import inspect
from pathlib import Path

import uvicorn
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from kit.web import client_connection

SOURCE = Path(client_connection.__file__).read_text(encoding="utf-8")
ATTRIBUTES = {
    "client", "connections", "cycle", "flow", "headers", "loop", "parser", "pipeline", "transport", "url",
}  # fmt: skip
# Methods that are overridden, whose callers are uvicorn and httptools, or called; with their parameters.
METHODS = {
    "__init__": ("config", "server_state", "app_state", "_loop"),
    "_start_asgi_task": ("cycle", "app"),
    "_unset_keepalive_if_required": (),
    "connection_lost": ("exc",),
    "connection_made": ("transport",),
    "data_received": ("data",),
    "on_body": ("body",),
    "on_header": ("name", "value"),
    "on_headers_complete": (),
    "on_message_begin": (),
    "on_message_complete": (),
    "on_response_complete": (),
    "on_url": ("url",),
    "pause_writing": (),
    "resume_writing": (),
}
CYCLE = (
    "disconnected", "keep_alive", "message_event", "more_body", "response_complete", "response_started",
    "waiting_for_100_continue",
)  # fmt: skip
FLOW = ("read_paused", "write_paused")


def names_used() -> set[str]:
    """The names that the module uses on a protocol, and those of its methods."""
    tree = ast.parse(SOURCE)
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("self", "super()", "protocol")
    }
    return used | {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


async def test_names_exist_and_are_all_that_is_used() -> None:
    config = uvicorn.Config(lambda: None, log_config=None)
    config.load()
    protocol = HttpToolsProtocol(config, ServerState(), {}, asyncio.get_running_loop())
    inherited = set(dir(protocol)) | {"url"}  # set by on_message_begin
    assert names_used() & inherited == ATTRIBUTES | METHODS.keys()
    for name, parameters in METHODS.items():
        assert tuple(inspect.signature(getattr(HttpToolsProtocol, name)).parameters)[1:] == parameters, name


async def test_objects_have_what_is_used_of_them() -> None:
    cycle = inspect.getsource(RequestResponseCycle.__init__)
    assert all(f"self.{name} = " in cycle for name in CYCLE)
    flow = inspect.getsource(FlowControl.__init__)
    assert all(f"self.{name} = False" in flow for name in FLOW)


def test_uvicorn_calls_the_overridden_methods() -> None:
    """A response's end, the start of a request, and the list of headers, which `feed` sends again."""
    source = inspect.getsource(HttpToolsProtocol)
    assert "on_response=self.on_response_complete" in source
    assert source.count("self._start_asgi_task(") == 2
    assert "self.headers = []" in inspect.getsource(HttpToolsProtocol.on_message_begin)
    assert "self.headers.append((name, value))" in inspect.getsource(HttpToolsProtocol.on_header)
