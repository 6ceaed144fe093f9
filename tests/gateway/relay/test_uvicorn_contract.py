"""What `gateway.relay` uses of uvicorn's HttpToolsProtocol beyond its documented API.

uvicorn may change these in any release. Each test names what the relay relies on, and fails before a request does.
"""

import ast
import asyncio
import inspect
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from gateway.relay.client_protocol import GatewayProtocol
from gateway.relay.exchange import Exchange
from gateway.relay.fast_path import FastPathRequest

RELAY = Path(inspect.getfile(GatewayProtocol)).parent
# Attributes that the relay reads or writes, by the value after construction.
ATTRIBUTES: dict[str, Any] = {
    "client": None,
    "cycle": None,
    "expect_100_continue": False,
    "flow": None,
    "headers": None,
    "loop": ...,
    "parser": ...,
    "scope": None,
    "server_state": ...,
    "transport": None,
}
# Methods that the relay overrides, whose callers are uvicorn or httptools, and those that it calls.
METHODS = {
    "__init__": ("config", "server_state", "app_state", "_loop"),
    "_start_asgi_task": ("cycle", "app"),
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
    "shutdown": (),
}
# What uvicorn itself reads and writes on `cycle`, and so on the relay's exchanges.
CYCLE_READ = {"response_complete"}
CYCLE_WRITTEN = {"keep_alive"}
# On a cycle that is uvicorn's own.
CYCLE_USED = ("disconnected", "message_event", "more_body", "response_complete")


@pytest.fixture
async def protocol() -> HttpToolsProtocol:
    """A protocol without a connection."""
    config = uvicorn.Config(lambda: None, log_config=None)
    config.load()
    return HttpToolsProtocol(config, ServerState(), {}, asyncio.get_running_loop())


def functions_of(cls: type) -> dict[str, ast.FunctionDef]:
    """The methods in a class's source."""
    tree = ast.parse(inspect.getsource(cls)).body[0]
    assert isinstance(tree, ast.ClassDef)
    return {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}


def used_on(owner: str, nodes: list[ast.FunctionDef], context: type[ast.expr_context]) -> set[str]:
    """The attributes of `self.<owner>` that the functions read (ast.Load) or write (ast.Store)."""
    return {
        node.attr
        for function in nodes
        for node in ast.walk(function)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, context) and ast.unparse(node.value) == owner
    }


@pytest.mark.parametrize("name", ATTRIBUTES)
async def test_attribute_exists(protocol: HttpToolsProtocol, name: str) -> None:
    value = getattr(protocol, name)
    assert ATTRIBUTES[name] is ... or value == ATTRIBUTES[name]


@pytest.mark.parametrize("name", METHODS)
def test_method_has_its_parameters(name: str) -> None:
    assert tuple(inspect.signature(getattr(HttpToolsProtocol, name)).parameters)[1:] == METHODS[name]


def test_lists_are_complete() -> None:
    """Every name of uvicorn's that the relay uses on `self` or `super()` is listed above."""
    inherited = set(dir(HttpToolsProtocol)) | set(vars(HttpToolsProtocol)) | assigned_in_init()
    used: set[str] = set()
    for module in ("client_protocol", "request_parser"):
        tree = ast.parse((RELAY / f"{module}.py").read_text(encoding="utf-8"))
        used |= {
            node.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("self", "super()")
        }
        used |= {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    assert (used & inherited) - {"url"} == ATTRIBUTES.keys() | METHODS.keys()


def assigned_in_init() -> set[str]:
    """The attributes that uvicorn's constructor sets."""
    return used_on("self", [functions_of(HttpToolsProtocol)["__init__"]], ast.Store)


def test_url_is_collected_from_on_message_begin_on() -> None:
    functions = functions_of(HttpToolsProtocol)
    assert "url" in used_on("self", [functions["on_message_begin"]], ast.Store)
    assert "url" in used_on("self", [functions["on_headers_complete"]], ast.Load)


def test_uvicorn_touches_only_known_attributes_of_a_cycle() -> None:
    """`connection_lost` and `on_body` use more, but get no exchange: the relay handles those before."""
    functions = functions_of(HttpToolsProtocol)
    rest = [
        node for name, node in functions.items() if name not in ("connection_lost", "on_body", "on_message_complete")
    ]
    assert used_on("self.cycle", rest, ast.Load) <= CYCLE_READ
    assert used_on("self.cycle", rest, ast.Store) <= CYCLE_WRITTEN
    for cls in (Exchange, FastPathRequest):
        assert all(hasattr(cls, name) for name in CYCLE_READ | CYCLE_WRITTEN)


def test_own_cycles_have_what_the_relay_uses() -> None:
    source = inspect.getsource(RequestResponseCycle.__init__)
    assert all(f"self.{name} = " in source for name in CYCLE_USED)


def test_a_cycle_is_queued_only_behind_one_that_is_not_complete() -> None:
    """The relay never begins one then, so that uvicorn's pipeline stays empty."""
    source = inspect.getsource(HttpToolsProtocol.on_headers_complete)
    assert "if existing_cycle is None or existing_cycle.response_complete:" in source
    assert "self._start_asgi_task(self.cycle, app)" in source


def test_state_and_flow_have_what_the_relay_uses() -> None:
    state = ServerState()
    assert state.total_requests == 0
    assert state.default_headers == []
    for method in ("pause_reading", "pause_writing", "resume_reading", "resume_writing"):
        assert callable(getattr(FlowControl, method))
    assert "self.read_paused = False" in inspect.getsource(FlowControl.__init__)
