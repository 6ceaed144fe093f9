"""What routing needs to know of a JSON body, read without decoding the rest, and the model's name put into one.

A body goes to the backend byte for byte, unless the name that the client uses is not one that the backend knows.
"""

from typing import Any

import msgspec

from gateway.endpoints import Endpoint
from gateway.routing import RoutingRequest
from kit.config.catalogue import VIRTUAL_MODEL
from kit.errors import InvalidRequest

_NONE = msgspec.Raw()


class _Top(msgspec.Struct):
    """The few top-level members that are looked at. Most stay bytes."""

    model: str | None = None
    stream: Any = None
    messages: msgspec.Raw = _NONE
    input: msgspec.Raw = _NONE
    prompt: msgspec.Raw = _NONE
    # What stands before the messages in what the model reads.
    tools: msgspec.Raw = _NONE
    system: msgspec.Raw = _NONE
    instructions: msgspec.Raw = _NONE
    # What names the conversation, or at least who talks; OpenAI's clients send the first, older ones the last.
    prompt_cache_key: msgspec.Raw = _NONE
    session_id: msgspec.Raw = _NONE
    user: msgspec.Raw = _NONE


class _Message(msgspec.Struct):
    content: msgspec.Raw = msgspec.Raw()


class _Part(msgspec.Struct):
    type: str = ""


# The names for a picture in a message: chat completions, responses, messages.
IMAGE_PARTS = frozenset({"image_url", "input_image", "image"})

# Members that are there and name nobody.
_NOBODY = (msgspec.Raw(b"null"), msgspec.Raw(b'""'))

_top = msgspec.json.Decoder(_Top)
_messages = msgspec.json.Decoder(list[_Message])
_parts = msgspec.json.Decoder(list[_Part])
_members = msgspec.json.Decoder(dict[str, msgspec.Raw])


def scan_json(body: bytes, endpoint: Endpoint, session: bytes = b"") -> RoutingRequest:
    """Read what routing needs; `session` is what the head says of the conversation.

    Raises InvalidRequest when the body is not a JSON object.
    """
    try:
        top = _top.decode(body)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"The body does not fit: {error}.") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"The body is not JSON: {error}.") from error
    model = top.model or None
    images = (
        (model is None or model == VIRTUAL_MODEL)
        and "multimodal" in endpoint.kinds
        and (has_images(top.messages) or has_images(top.input))
    )
    stream = bool(top.stream)
    if not endpoint.generates:
        return RoutingRequest(endpoint, model, images, stream, len(body))
    if not session:
        named = top.prompt_cache_key or top.session_id or top.user
        session = bytes(memoryview(named)) if named and named not in _NOBODY else b""
    # In the order in which chat templates put them together.
    parts = (top.tools, top.system, top.instructions, top.messages, top.input, top.prompt)
    return RoutingRequest(endpoint, model, images, stream, len(body), tuple(filter(None, parts)), session)


def has_images(messages: msgspec.Raw) -> bool:
    """Whether any message holds a picture. What is not a list of messages holds none; its backend will say so."""
    if not _is_list(messages):
        return False
    try:
        for message in _messages.decode(messages):
            if _is_list(message.content) and any(part.type in IMAGE_PARTS for part in _parts.decode(message.content)):
                return True
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return False


def _is_list(value: msgspec.Raw) -> bool:
    return bytes(memoryview(value)[:1]) == b"["


def with_model(body: bytes, model: str) -> bytes:
    """`body`, which `scan_json` has read, with `model` as its model. All other members keep their bytes.

    Raises InvalidRequest: `scan_json` does not decode the names of members that it does not know, and here they are.
    """
    try:
        members = _members.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"The body is not JSON: {error}.") from error
    members["model"] = msgspec.Raw(msgspec.json.encode(model))
    return msgspec.json.encode(members)
