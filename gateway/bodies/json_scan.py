"""Read the routing properties of a JSON body without decoding the rest, and replace its model.

A body is forwarded byte for byte unless the backend does not accept the client's name for the model. Bodies up to
MAX_DECODED are decoded at once, values that routing does not read excepted; larger ones are scanned as they arrive.
"""

from typing import Any

import msgspec

from gateway.bodies.json_members import IMAGE_PART, MemberScanner
from gateway.endpoints import Endpoint
from gateway.routing import RoutingRequest
from kit.config.catalogue import VIRTUAL_MODEL
from kit.errors import InvalidRequest

# The largest body that is decoded at once, in bytes: a few milliseconds for the worst JSON.
MAX_DECODED = 256 * 1024
# The largest body whose members are all decoded to replace one, in bytes: each takes 100 bytes and more.
MAX_DECODED_MEMBERS = 16 * 1024
# The longest value of a member that is read whole, in bytes: a model, a session.
MAX_VALUE = 4096
# The longest beginning of a prompt that routing compares, in bytes (gateway.backends.prefix_index).
MAX_PROMPT = 64 * 1024

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


# The members that are decoded, and those of which routing uses the bytes.
_DECODED = ("model", "stream")
_PROMPT = ("tools", "system", "instructions", "messages", "input", "prompt")
_SESSION = ("prompt_cache_key", "session_id", "user")
# Session members without a value.
_NO_SESSION = (msgspec.Raw(b"null"), msgspec.Raw(b'""'))

_top = msgspec.json.Decoder(_Top)
_members = msgspec.json.Decoder(dict[str, msgspec.Raw])


def scan_json(
    body: bytes, endpoint: Endpoint, session: bytes = b"", scanner: MemberScanner | None = None
) -> RoutingRequest:
    """Return the routing properties; `session` is the key of the conversation from the headers, if any.

    `scanner` has scanned the whole body, if it is larger than MAX_DECODED.
    Raises InvalidRequest if the body is not a JSON object.
    """
    if scanner is None and len(body) > MAX_DECODED:
        scanner = whole_scan(body)
    try:
        top = _top.decode(body) if scanner is None else _top_of(scanner, body)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"Invalid request body: {error}.") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"The body is not JSON: {error}.") from error
    model = top.model or None
    images = (
        (model is None or model == VIRTUAL_MODEL)
        and "multimodal" in endpoint.kinds
        and (b"image" in body and _has_images(top) if scanner is None else scanner.images)
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


def whole_scan(body: bytes) -> MemberScanner:
    """Return the places of the members of a complete body. Raises InvalidRequest."""
    scanner = MemberScanner()
    scanner.finish(body)
    return scanner


def _top_of(scanner: MemberScanner, body: bytes) -> _Top:
    """Return the members of a large body: model and stream decoded, of the others as much as routing compares.

    Raises InvalidRequest, and the errors of the decoder.
    """
    value = {name: memoryview(body)[start:end] for name, (start, end) in scanner.spans.items()}
    members = []
    for name in _DECODED:
        if len(value.get(name, b"")) > MAX_VALUE:
            raise InvalidRequest(f"The value of {name} is longer than {MAX_VALUE} bytes.", param=name)
        if name in value:
            members.append(b'"%b":%b' % (name.encode(), bytes(value[name])))
    top = _top.decode(b"{%b}" % b",".join(members))
    for names, limit in ((_SESSION, MAX_VALUE), (_PROMPT, MAX_PROMPT)):
        for name in names:
            setattr(top, name, msgspec.Raw(bytes(value.get(name, b"")[:limit])))
    return top


def _has_images(top: _Top) -> bool:
    return any(value and IMAGE_PART.search(value) is not None for value in (top.messages, top.input))


def with_model(body: bytes, model: str) -> bytes:
    """Return `body` with `model` as its model. All other members keep their bytes.

    Raises InvalidRequest for names of members that are not valid JSON, which `scan_json` does not decode.
    """
    if len(body) > MAX_DECODED_MEMBERS:
        return b"".join(spliced(body, whole_scan(body), model))
    try:
        members = _members.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"The body is not JSON: {error}.") from error
    members["model"] = msgspec.Raw(msgspec.json.encode(model))
    return msgspec.json.encode(members)


def spliced(body: bytes, scanner: MemberScanner, model: str) -> tuple[memoryview, bytes, memoryview]:
    """Return the body in three parts, the one between its own bytes with `model` as its model."""
    view, name = memoryview(body), msgspec.json.encode(model)
    if "model" in scanner.spans:
        start, end = scanner.spans["model"]
        return view[:start], name, view[end:]
    start = body.index(b"{") + 1
    return view[:start], b'"model":%b%b' % (name, b"," if scanner.spans else b""), view[start:]
