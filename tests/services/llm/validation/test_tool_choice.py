"""Tools offered to a model without tool calling."""

from typing import Any

import pytest

from kit.errors import InvalidRequest
from services.llm.validation import requests
from services.llm.validation.requests import Capabilities, Work
from services.llm.validation.tool_choice import is_call_demanded

MESSAGES = [{"role": "user", "content": "hi"}]
TOOL = {"type": "function", "function": {"name": "f", "description": None, "parameters": {}}}
FLAT = {"type": "function", "name": "f", "parameters": {}}
SMOLLM2 = Capabilities(model="smollm2")
# The forms of each API, by the references of OpenAI's chat completions and responses and of Anthropic's messages.
PERMITTED = [
    None,
    "auto",
    "none",
    {"type": "auto"},
    {"type": "none"},
    {"type": "allowed_tools", "mode": "auto", "tools": [FLAT]},
    {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [TOOL]}},
]
DEMANDED = [
    "required",
    {"type": "function", "function": {"name": "f"}},
    {"type": "function", "name": "f"},
    {"type": "custom", "custom": {"name": "f"}},
    {"type": "web_search_preview"},
    {"type": "allowed_tools", "mode": "required", "tools": [FLAT]},
    {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [TOOL]}},
    {"type": "any"},
    {"type": "tool", "name": "f"},
    {},
    [],
    3,
]


@pytest.mark.parametrize("choice", PERMITTED)
def test_auto_permits_a_response_without_a_call(choice: Any) -> None:
    assert not is_call_demanded(choice)


@pytest.mark.parametrize("choice", DEMANDED)
def test_other_choices_demand_a_call(choice: Any) -> None:
    assert is_call_demanded(choice)


def read(route: str, **body: Any) -> Work:
    if route == "chat":
        return requests.chat({"messages": MESSAGES, **body}, SMOLLM2)
    return requests.response({"input": "hi", **body}, SMOLLM2)


@pytest.mark.parametrize("route", ["chat", "response"])
@pytest.mark.parametrize("choice", ["absent", *PERMITTED])
@pytest.mark.parametrize("tools", [[TOOL], [FLAT] * 36, [{"type": "web_search"}], [{"type": "custom", "name": "f"}]])
def test_tools_are_ignored_if_the_model_cannot_call_them(route: str, choice: Any, tools: list[Any]) -> None:
    """Open WebUI sends its tools with every chat: `auto`, the default, permits a response without a call (OpenAI)."""
    work = read(route, tools=tools, **({} if choice == "absent" else {"tool_choice": choice}))
    assert "tools" not in work.body
    assert work.ignores_tools == (choice != "none")


def test_older_form_of_tools_is_ignored_as_well() -> None:
    work = read("chat", functions=[{"name": "f"}], function_call="auto")
    assert (work.ignores_tools, set(work.body)) == (True, set(read("chat").body))


@pytest.mark.parametrize("route", ["chat", "response"])
@pytest.mark.parametrize("choice", DEMANDED)
def test_demanded_call_is_rejected(route: str, choice: Any) -> None:
    """A response without a call would not be what the client asked for."""
    with pytest.raises(InvalidRequest, match="Model 'smollm2' does not support tool calling") as refused:
        read(route, tools=[TOOL], tool_choice=choice)
    assert (refused.value.status, refused.value.param) == (400, "tool_choice")


@pytest.mark.parametrize(
    "tool", [FLAT | {"function": ""}, {"type": "function", "function": {"name": "f", "function": "x"}}]
)
def test_tool_with_a_strange_function_reaches_the_template_as_it_is(tool: dict[str, Any]) -> None:
    work = requests.chat({"messages": MESSAGES, "tools": [tool]}, Capabilities(tools=True))
    assert work.body["tools"] == [tool]


@pytest.mark.parametrize("extra", [{}, {"tools": []}, {"tools": None}, {"tool_choice": "auto"}, {"functions": []}])
def test_nothing_is_ignored_without_tools(extra: dict[str, Any]) -> None:
    assert not read("chat", **extra).ignores_tools
    assert not read("response", **extra).ignores_tools
    assert not requests.chat({"messages": MESSAGES, "tools": [TOOL]}, Capabilities(tools=True)).ignores_tools
