"""Tools offered to a model without tool calling: ignored, unless the request demands a call."""

from typing import Any

from kit.errors import InvalidRequest

# The response header that reports it.
IGNORED = {"x-tools": "ignored"}
# Forms of `tool_choice` that permit a response without a call; `auto` and `none` as objects are Anthropic's.
_PERMITTING = frozenset({"auto", "none"})


def is_call_demanded(choice: Any) -> bool:
    """Return whether `tool_choice`, in any API's form, demands a call; absent or null, it does not."""
    if choice is None:
        return False
    if isinstance(choice, dict):
        # Chat completions nest the allowed tools, responses do not.
        nested = choice.get("allowed_tools")
        allowed = nested if isinstance(nested, dict) else choice
        choice = allowed.get("mode") if choice.get("type") == "allowed_tools" else choice.get("type")
    return not (isinstance(choice, str) and choice in _PERMITTING)


def no_tool_calling(model: str) -> InvalidRequest:
    """Return the error for a demanded call."""
    return InvalidRequest(
        f"Model {model!r} does not support tool calling. Send tool_choice auto or none, or use another model.",
        param="tool_choice",
    )
