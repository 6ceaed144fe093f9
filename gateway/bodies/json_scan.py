"""Read the routing properties of a JSON body without decoding the rest, and replace its model.

A body is forwarded byte for byte unless the backend does not accept the client's name for the model.
"""

from typing import Any

import msgspec

from gateway.endpoints import Endpoint
from gateway.routing import RoutingRequest
from kit.config.catalogue import VIRTUAL_MODEL
from kit.errors import InvalidRequest

_NONE = msgspec.Raw()


class _Top(msgspec.Struct):
    """The top-level members that routing uses. Most stay bytes."""

    model: str | None = None
    stream: Any = None
    messages: msgspec.Raw = _NONE
    input: msgspec.Raw = _NONE
    prompt: msgspec.Raw = _NONE
    # Parts of the prompt that chat templates put before the messages.
    tools: msgspec.Raw = _NONE
    system: msgspec.Raw = _NONE
    instructions: msgspec.Raw = _NONE
    # The key of the conversation or at least of the user; OpenAI's clients send the first, older ones the last.
    prompt_cache_key: msgspec.Raw = _NONE
    session_id: msgspec.Raw = _NONE
    user: msgspec.Raw = _NONE


class _Message(msgspec.Struct):
    content: msgspec.Raw = msgspec.Raw()


class _Part(msgspec.Struct):
    type: str = ""


# Types of image parts in messages: chat completions, responses, messages.
IMAGE_PARTS = frozenset({"image_url", "input_image", "image"})

# Session members without a value.
_NO_SESSION = (msgspec.Raw(b"null"), msgspec.Raw(b'""'))

_top = msgspec.json.Decoder(_Top)
_messages = msgspec.json.Decoder(list[_Message])
_parts = msgspec.json.Decoder(list[_Part])
_members = msgspec.json.Decoder(dict[str, msgspec.Raw])


def scan_json(body: bytes, endpoint: Endpoint, session: bytes = b"") -> RoutingRequest:
    """Return the routing properties; `session` is the key of the conversation from the headers, if any.

    Raises InvalidRequest if the body is not a JSON object.
    """
    try:
        top = _top.decode(body)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"Invalid request body: {error}.") from error
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
        session = bytes(memoryview(named)) if named and named not in _NO_SESSION else b""
    # In the order of chat templates.
    parts = (top.tools, top.system, top.instructions, top.messages, top.input, top.prompt)
    return RoutingRequest(endpoint, model, images, stream, len(body), tuple(filter(None, parts)), session)


def has_images(messages: msgspec.Raw) -> bool:
    """Whether any message has an image. False if `messages` is not a list: the backend rejects such a body."""
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
    """Return `body` with `model` as its model. All other members keep their bytes.

    Raises InvalidRequest for names of members that are not valid JSON, which `scan_json` does not decode.
    """
    try:
        members = _members.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"The body is not JSON: {error}.") from error
    members["model"] = msgspec.Raw(msgspec.json.encode(model))
    return msgspec.json.encode(members)
