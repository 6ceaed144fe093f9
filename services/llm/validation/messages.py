"""Validation of chat messages, converted for chat templates."""

from typing import Any

from pydantic_core import from_json

from kit.errors import InvalidRequest
from services.llm.validation.options import shown

ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})
# Names in chat completions and in the Responses API.
TEXT_PARTS = frozenset({"text", "input_text", "output_text", "refusal"})
IMAGE_PARTS = frozenset({"image_url", "input_image"})
MAX_MESSAGES = 4096


def read_messages(value: object, *, images: bool, param: str = "messages") -> list[dict[str, Any]]:
    """Return validated copies of the messages, with content as text or a list of text and image parts.

    Image parts become `{"type": "image_url", "image_url": {"url": ...}}`. Raises InvalidRequest that names the message.
    """
    if not isinstance(value, list) or not value:
        raise InvalidRequest(f"{param} must be a list with at least one message.", param=param)
    if len(value) > MAX_MESSAGES:
        raise InvalidRequest(f"{param} has {len(value)} messages; the limit is {MAX_MESSAGES}.", param=param)
    return [_message(message, f"{param}.{index}", images) for index, message in enumerate(value)]


def image_parts(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the image parts of validated messages, by reference."""
    return [
        part
        for message in messages
        if isinstance(message.get("content"), list)
        for part in message["content"]
        if part["type"] == "image_url"
    ]


def read_arguments(value: object) -> dict[str, Any]:
    """Return the arguments of a call in the history as the mapping that chat templates need.

    Anything but a JSON object counts as empty, as in vLLM: a model's malformed call stays in the conversation, and
    rejecting it would reject every later turn.
    """
    if isinstance(value, str):
        try:
            value = from_json(value, allow_inf_nan=False)
        except ValueError:
            return {}
    return value if isinstance(value, dict) else {}


def _message(message: object, where: str, images: bool) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise InvalidRequest(f"{where} must be an object with role and content, not {shown(message)}.", param=where)
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        known = ", ".join(sorted(ROLES))
        raise InvalidRequest(f"{where}.role must be one of {known}, not {shown(role)}.", param=f"{where}.role")
    # Newer clients call the system role developer; chat templates do not.
    clean: dict[str, Any] = {"role": "system" if role == "developer" else role}
    calls = message.get("tool_calls")
    if calls:
        clean["tool_calls"] = _tool_calls(calls, f"{where}.tool_calls")
    if isinstance(message.get("tool_call_id"), str):
        clean["tool_call_id"] = message["tool_call_id"]
    content = message.get("content")
    if content is None:
        if role != "assistant":
            raise InvalidRequest(f"{where}.content is missing.", param=f"{where}.content")
        clean["content"] = ""
    else:
        clean["content"] = _content(content, f"{where}.content", images)
    return clean


def _content(content: object, where: str, images: bool) -> str | list[dict[str, Any]]:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise InvalidRequest(f"{where} must be text or a list of parts, not {shown(content)}.", param=where)
    return [_part(part, f"{where}.{index}", images) for index, part in enumerate(content)]


def _part(part: object, where: str, images: bool) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(part, dict) or not isinstance(kind, str):
        raise InvalidRequest(f"{where} must be an object with a type, not {shown(part)}.", param=where)
    if kind in TEXT_PARTS:
        text = part.get("refusal" if kind == "refusal" else "text")
        if not isinstance(text, str):
            raise InvalidRequest(f"{where}.text must be a string, not {shown(text)}.", param=f"{where}.text")
        return {"type": "text", "text": text}
    if kind in IMAGE_PARTS:
        if not images:
            raise InvalidRequest(
                f"{where}: this model accepts text only. Send images to a model of kind multimodal.", param=where
            )
        value = part.get("image_url")
        url = value.get("url") if isinstance(value, dict) else value
        if not isinstance(url, str):
            raise InvalidRequest(f"{where}.image_url must have a url.", param=f"{where}.image_url")
        return {"type": "image_url", "image_url": {"url": url}}
    raise InvalidRequest(f"{where}: unsupported part type {shown(kind)}.", param=where)


def _tool_calls(calls: object, where: str) -> list[dict[str, Any]]:
    if not isinstance(calls, list):
        raise InvalidRequest(f"{where} must be a list.", param=where)
    clean = []
    for index, call in enumerate(calls):
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise InvalidRequest(f"{where}.{index} must have a function with a name.", param=f"{where}.{index}")
        clean.append(
            {
                "id": str(call.get("id") or ""),
                "type": "function",
                "function": {"name": function["name"], "arguments": read_arguments(function.get("arguments"))},
            }
        )
    return clean
