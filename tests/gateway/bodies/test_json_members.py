"""Large JSON bodies: scanned as they arrive, exactly, with bounded work and memory."""

import json
import random
from typing import Any

import msgspec
import pytest

from gateway.backends.prefix_index import PREFIX_LENGTHS
from gateway.bodies.body import JsonBody
from gateway.bodies.json_members import MAX_MEMBERS, MemberScanner
from gateway.bodies.json_scan import MAX_DECODED, MAX_PROMPT, scan_json, with_model
from gateway.endpoints import BY_PATH
from gateway.routing import RoutingRequest
from kit.errors import InvalidRequest
from tests.gateway.conftest import StartBackend, StartGateway
from tests.support.work import calls, peak_memory

CHAT = BY_PATH[b"/v1/chat/completions"]
MB = 1024 * 1024
# What uvloop reads at once, in bytes.
READ = 256_000
NAMES = ("model", "messages", "tools", "stream", "user", "a", "é", 'quo"te', "back\\slash", "{[,:", "")
TEXTS = ("", "a", '"', "\\", '\\"', "\\\\", "[{", "]}", "é", "\u2028", "\n", "x" * 700, '\\"' * 300, "}" * 400)


def random_value(draw: random.Random, depth: int) -> Any:
    kind = draw.randrange(8) if depth else draw.randrange(5)
    if kind < 3:
        return "".join(draw.choices(TEXTS, k=draw.randrange(4)))
    if kind == 3:
        return draw.choice((None, True, False, 0, -1.5e-7, 10**20))
    if kind == 4:
        return draw.choice(([], {}, ""))
    values = [random_value(draw, depth - 1) for _ in range(draw.randrange(6))]
    return values if kind < 7 else {draw.choice(NAMES): value for value in values}


def random_object(draw: random.Random) -> bytes:
    """An object with members of the same name, nested values, and white space in all places."""
    space = draw.choice(("", " ", "\r\n\t", " " * 300))
    members = []
    for _ in range(draw.randrange(8)):
        value = json.dumps(
            random_value(draw, draw.randrange(6)),
            ensure_ascii=draw.random() < 0.5,
            separators=(space + "," + space, space + ":" + space) if draw.random() < 0.5 else None,
        )
        members.append(f"{json.dumps(draw.choice(NAMES))}{space[:200]}:{space}{value}{space}")
    return f"{space}{{{space}{f',{space}'.join(members)}}}{space}".encode()


def test_places_are_those_of_the_decoder() -> None:
    """However the body is cut into pieces."""
    draw = random.Random(4)
    for _ in range(3000):
        body = random_object(draw)
        scanner = MemberScanner()
        step = draw.choice((1, 7, 100, 1000, len(body)))
        if step > 1 or len(body) < 2000:
            for end in range(step, len(body), step):
                scanner.scan(body[:end])
        scanner.finish(body)
        members = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
        places = {name: body[start:end].rstrip() for name, (start, end) in scanner.spans.items()}
        assert places == {name: bytes(memoryview(value)) for name, value in members.items()}, body


@pytest.mark.parametrize("depth", [1, 7, 8, 9, 100, 30_000])
@pytest.mark.parametrize("unit", ["[%s]", '{"a":%s}', "[{},%s,[]]", '["]",%s]'])
def test_nested_values_end_where_they_end(depth: int, unit: str) -> None:
    before, after = unit.split("%s")
    value = (before * depth + "1" + after * depth).encode()
    body = b'{"a":%b,"b":[%b,%b],"model":"m"}' % (value, value, value)
    scanner = MemberScanner()
    scanner.finish(body)
    assert body[slice(*scanner.spans["a"])] == value
    assert body[slice(*scanner.spans["model"])] == b'"m"'


PADDING = {"padding": "x" * MAX_DECODED}
MANY = [{"role": "user", "content": "Hi"}] * 20_000


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"model": "qwen", "stream": True},
        {"model": None, "stream": 0},
        {"model": "", "stream": [1]},
        {"model": "é\n\"", "user": "me", "session_id": {"a": 1}},
        {"messages": MANY, "tools": [1], "system": "Be brief", "prompt_cache_key": "k"},
        {"prompt": "Once" * 10, "user": "x" * 100},
        {"messages": [{"content": [{"type": "image_url", "image_url": {"url": "data:"}}]}]},
        {"messages": [*MANY, {"content": [{"type": "tool_result", "content": [{"type": "image"}]}]}]},
        {"input": [{"content": [{"type": "input_image"}]}], "model": "cluster"},
        {"model": "qwen", "messages": [{"content": [{"type": "image"}]}]},
        {"messages": [{"content": '{"type": "image"}'}], "tools": [{"type": "image"}]},
    ],
)  # fmt: skip
@pytest.mark.parametrize("first", [True, False])
def test_large_body_has_the_properties_of_a_small_one(body: dict[str, Any], first: bool) -> None:
    whole = body | PADDING if first else PADDING | body
    for separators in ((",", ":"), (", ", ": ")):
        data = json.dumps(whole, separators=separators).encode()
        found, expected = received(data).routing_request(), scan_json(data, CHAT, b"", None)
        short = {**body, "messages": body["messages"][-20:]} if "messages" in body else body
        reference = scan_json(json.dumps(short, separators=separators).encode(), CHAT)
        assert found == expected == reference
        assert (found.session, found.size) == (reference.session, len(data))
        decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])
        members = decoder.decode(data)
        parts = [
            bytes(memoryview(members[name]))
            for name in ("tools", "system", "messages", "prompt", "input")
            if name in members
        ]
        assert [bytes(memoryview(part)) for part in found.prompt] == [part[:MAX_PROMPT] for part in parts]


def test_prompt_is_read_as_far_as_routing_compares_it() -> None:
    assert PREFIX_LENGTHS[-1] <= MAX_PROMPT


def received(data: bytes, step: int = READ) -> JsonBody:
    """The body after it has arrived."""
    body = JsonBody(CHAT, len(data))
    for start in range(0, len(data), step):
        body.add(data[start : start + step])
    return body


@pytest.mark.parametrize(
    "end",
    [b"", b"]", b"}", b'"', b"]}x", b"]} {}", b']"b":1}', b"],}", b'],"b"}', b'],"b":}', b'],"b":1', b"],'b':1}",
     b'],"model":1}', b'],"model":["a"]}', b'],"model":"\xff"}', b'],"model":"\\ud800"}', b'],"\\x":1}', b'],"b":1 2}',
     b'],"model":"' + b"x" * 5000 + b'"}', b'],"stream":"' + b"x" * 5000 + b'"}', b'],"' + b"b" * 600 + b'":1}',
     b"]" + b',"b":1' * MAX_MEMBERS + b"}"],
)  # fmt: skip
def test_large_body_that_is_no_object_is_refused(end: bytes) -> None:
    """Or whose model is no name. Values that routing does not read are left to the backend."""
    data = b'{"a":["' + b"x" * MAX_DECODED + b'"'
    with pytest.raises(InvalidRequest):
        received(data + end, 100_000).routing_request()
    assert received(data + b",?]}", 100_000).routing_request() == RoutingRequest(CHAT)


@pytest.mark.parametrize("body", [{"model": "old"}, {}, {"a": 1, "model": None, "b": [2]}, {"a": {"model": "inner"}}])
@pytest.mark.parametrize("size", [10, 20_000, MAX_DECODED, 2 * MB])
def test_model_is_replaced_in_bodies_of_any_size(body: dict[str, Any], size: int) -> None:
    whole = body | {"padding": "x" * size}
    data = json.dumps(whole).encode()
    complete = received(data)
    complete.routing_request()
    for _ in range(2):
        for model, expected in ((None, whole), ('ne"w', whole | {"model": 'ne"w'})):
            length, first, pieces = complete.pieces(model)
            sent = b"".join((first, *(pieces or ())))
            assert length == len(sent)
            assert json.loads(sent) == expected
    assert json.loads(with_model(data, "new")) == whole | {"model": "new"}


def filled(before: bytes, unit: bytes, after: bytes, size: int) -> bytes:
    return before + unit * ((size - len(before) - len(after)) // len(unit)) + after


MESSAGES = b'{"messages":['
SHAPES = {
    "empty objects": (MESSAGES, b"{},", b"{}]}"),
    "empty contents": (MESSAGES, b'{"content":[]},', b"{}]}"),
    "parts": (b'{"messages":[{"content":[', b"{},", b"{}]}]}"),
    "numbers": (b'{"input":[', b"1,", b"1]}"),
    "empty strings": (b'{"input":[', b'"",', b"1]}"),
    "text": (b'{"prompt":"', b"a", b'"}'),
    "escaped quotes": (b'{"prompt":"', b'\\"', b'"}'),
    "backslashes": (MESSAGES + b'"', b"\\\\", b'"]}'),
    "shallow nesting": (MESSAGES, b"[[[[[[[[[]]]]]]]]],", b"1]}"),
    "almost images": (MESSAGES, b'{"type":"image "},', b"{}]}"),
    "white space": (b'{"a":1', b" ", b"}"),
    "one number": (b'{"a":', b"1", b"}"),
    "deep nesting": (MESSAGES, b"[", b""),
    "members": (b"{", b'"a":1,', b'"a":1}'),
    "names": (b'{"', b"a", b'":1}'),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_work_and_memory_per_read_are_bounded(shape: str) -> None:
    """For any shape of 4 MB: before, the first three took 1 to 8 million calls and 20 times their size."""

    def receive() -> None:
        try:
            body = received(data)
            body.routing_request()
            length, first, pieces = body.pieces("other")
            assert length == len(first) + sum(map(len, pieces or ()))
        except InvalidRequest as error:
            assert shape in ("deep nesting", "members", "names"), error  # noqa: PT017

    data = filled(*SHAPES[shape], 4 * MB)
    assert calls(receive) < 200_000
    assert peak_memory(receive) < 2 * len(data)


async def test_huge_messages_reach_the_backend(start_backend: StartBackend, start_gateway: StartGateway) -> None:
    """Byte for byte, or with the backend's name for the model; an image in them decides the model."""
    text, vision = await start_backend(ours=False), await start_backend("vision", model="llava", kind="multimodal")
    gateway = await start_gateway(text, vision)
    image = b'{"content":[{"type":"image_url"}]}'
    fast, qwen = b'],"model":"fast"}', b'],"model":"qwen"}'
    for last, end, backend in ((b"{}", qwen, text), (b"{}", fast, text), (image, b"]}", vision)):
        body = filled(MESSAGES, b"{},", last + end, 2 * MB)
        answer = await gateway.http.post("/v1/chat/completions", content=body)
        assert answer.status_code == 200, answer.text
        assert backend.requests[-1].body == body.replace(fast, qwen)
