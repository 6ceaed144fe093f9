"""Validation of the Responses API's `input`, converted for transformers' handler."""

from typing import Any

from kit.errors import InvalidRequest
from services.llm.validation.messages import read_arguments, read_messages
from services.llm.validation.options import shown

PARAM = "input"


def read_input(value: object, *, images: bool) -> str | list[dict[str, Any]]:
    """Return the text, or validated copies of the items. Raises InvalidRequest that names the item."""
    if isinstance(value, str):
        if not value:
            raise InvalidRequest("input is empty.", param=PARAM)
        return value
    if not isinstance(value, list) or not value:
        raise InvalidRequest("input must be text or a non-empty list of items.", param=PARAM)
    if all(
        isinstance(item, dict) and "role" not in item and str(item.get("type")).startswith("input_") for item in value
    ):
        return read_messages([{"role": "user", "content": value}], images=images, param=PARAM)
    if isinstance(value[0], dict) and "role" not in value[0]:
        # The handler would treat such a list as parts of one message, and drop the rest.
        raise InvalidRequest("The first item of input must be a message.", param=PARAM)
    return [_item(item, f"{PARAM}.{index}", images) for index, item in enumerate(value)]


def _item(item: object, where: str, images: bool) -> dict[str, Any]:
    if not isinstance(item, dict):
        raise InvalidRequest(f"{where} must be an object, not {shown(item)}.", param=PARAM)
    kind = item.get("type")
    if "role" in item and kind in (None, "message"):
        return read_messages([item], images=images, param=where)[0]
    if kind == "function_call":
        if not isinstance(item.get("call_id"), str) or not isinstance(item.get("name"), str):
            raise InvalidRequest(f"{where} must have call_id and name, both strings.", param=PARAM)
        arguments = read_arguments(item.get("arguments"))
        return {"type": kind, "call_id": item["call_id"], "name": item["name"], "arguments": arguments}
    if kind == "function_call_output":
        if not isinstance(item.get("call_id"), str) or not isinstance(item.get("output"), str):
            raise InvalidRequest(f"{where} must have call_id and output, both strings.", param=PARAM)
        return {"type": kind, "call_id": item["call_id"], "output": item["output"]}
    if kind == "reasoning":
        return {"type": kind, "content": []}
    raise InvalidRequest(f"{where}: unsupported item type {shown(kind)}.", param=PARAM)
