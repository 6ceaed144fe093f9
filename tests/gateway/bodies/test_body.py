"""Request bodies: scanning, limits, and rewriting of JSON and forms."""

import contextlib
import json
from pathlib import Path

import pytest

from gateway.bodies.body import FormBody, JsonBody
from gateway.bodies.json_scan import scan_json, with_model
from gateway.bodies.memory_budget import Allocation, MemoryBudget
from gateway.bodies.spool import MB, Spool, SpoolFull
from gateway.endpoints import BY_PATH
from gateway.http1.multipart import MAX_HEADS, MAX_PART_HEAD, MAX_PARTS, FormScanner, boundary_of
from gateway.routing import RoutingRequest
from kit.errors import ApiError, InvalidRequest, PayloadTooLarge
from tests.support.work import calls, peak_memory

CHAT = BY_PATH[b"/v1/chat/completions"]
AUDIO = BY_PATH[b"/v1/audio/transcriptions"]


def image(kind: str) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": [{"type": "text", "text": "?"}, {"type": kind}]}]}


@pytest.mark.parametrize(
    ("body", "model", "images", "stream"),
    [
        ({}, None, False, False),
        ({"model": "qwen"}, "qwen", False, False),
        ({"model": ""}, None, False, False),
        ({"model": None}, None, False, False),
        ({"stream": True}, None, False, True),
        ({"stream": False, "model": "a"}, "a", False, False),
        ({"stream": None}, None, False, False),
        ({"stream": 1}, None, False, True),
        (image("image_url"), None, True, False),
        (image("input_image"), None, True, False),
        (image("image"), None, True, False),
        (image("input_audio"), None, False, False),
        ({"model": "cluster"} | image("image_url"), "cluster", True, False),
        ({"model": "qwen"} | image("image_url"), "qwen", False, False),
        ({"input": image("input_image")["messages"]}, None, True, False),
        ({"input": "text"}, None, False, False),
        ({"messages": "nonsense"}, None, False, False),
        ({"messages": [1, 2]}, None, False, False),
        ({"messages": [{"content": [1]}]}, None, False, False),
        ({"messages": [{"content": "[not a list"}]}, None, False, False),
        ({"messages": [{"content": None}, {}]}, None, False, False),
    ],
)
def test_scan_reads_routing_properties(body: dict[str, object], model: str | None, images: bool, stream: bool) -> None:
    """Malformed messages are left to the backend."""
    assert scan_json(json.dumps(body).encode(), CHAT) == RoutingRequest(CHAT, model, images=images, stream=stream)


@pytest.mark.parametrize(
    "body",
    [b"", b" ", b"[]", b"null", b"1", b'"x"', b"{", b'{"model":1}', b'{"model":["a"]}', b"{} {}", b"\xff\xfe{}",
     b'{"model":"\xff"}', b'{"a":NaN}', b"{'a':1}", b'{"a":' + b"[" * 100_000, b"\xef\xbb\xbf{}",
     b'{"model":"\\ud800"}'],
)  # fmt: skip
def test_scan_rejects_other_than_json_objects(body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        scan_json(body, CHAT)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"{}", b'{"model":"new"}'),
        (b'{"model": "old", "n": 1.50}', b'{"model":"new","n":1.50}'),
        (b'{"a": "\\u00e9" , "model":null}', b'{"a":"\\u00e9","model":"new"}'),
        (b'{"a": {"model": "inner"}}', b'{"a":{"model": "inner"},"model":"new"}'),
        (b'{"n": 12345678901234567890123}', b'{"n":12345678901234567890123,"model":"new"}'),
    ],
)
def test_with_model_changes_only_the_model(body: bytes, expected: bytes) -> None:
    assert with_model(body, "new") == expected


def test_json_body_over_the_limit_is_413() -> None:
    body = JsonBody(CHAT, 10)
    body.add(b"12345")
    with pytest.raises(PayloadTooLarge, match="MAX_BODY_MB"):
        body.add(b"678901")


BOUNDARY = b"xYz"
HEAD = b"multipart/form-data; boundary=xYz"


def part(name: str, value: bytes, *, more: str = "") -> bytes:
    return f'--xYz\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'.encode() + value + b"\r\n"


FILE = part("file", b"\x00\r\n--xY\r\n--\r\n" * 9, more='; filename="a.wav"')
END = b"--xYz--\r\n"


def scanned(form: bytes, step: int) -> FormScanner:
    """A scanner that has read the whole form, so many bytes at a time."""
    scanner = FormScanner(BOUNDARY)
    for start in range(0, len(form), step):
        scanner.feed(form[start : start + step])
    scanner.finish()
    return scanner


@pytest.mark.parametrize("step", [1, 2, 3, 7, 64, 10_000])
@pytest.mark.parametrize(
    ("form", "model"),
    [
        (FILE + part("model", b"whisper") + END, "whisper"),
        (part("model", b"whisper") + FILE + END, "whisper"),
        (FILE + END, None),
        (FILE + part("model", b"") + END, None),
        (FILE + part("prompt", b'name="model"\r\n\r\nx') + END, None),
        (part("file", b"x", more='; filename="; name=model"') + END, None),
        (b"preamble\r\n" + part("model", b"m") + END + b"epilogue", "m"),
        (FILE.replace(b'name="file"', b"name=file") + part("model", b"m").replace(b'"model"', b"model") + END, "m"),
        (part("model", b"m").replace(b"Content-Disposition", b"X: y\r\ncontent-disposition") + END, "m"),
    ],
)
def test_model_field_is_found_in_any_pieces(form: bytes, model: str | None, step: int) -> None:
    scanner = scanned(form, step)
    assert scanner.model == model
    if model:
        assert scanner.span is not None
        assert form[slice(*scanner.span)] == model.encode()


@pytest.mark.parametrize(
    "form",
    [b"", b"nonsense", FILE, END, FILE + b"--xYz", part("model", b"a") + part("model", b"b") + END,
     part("model", b"x" * 600) + END, part("model", b"\xff") + END, b"--xYzz\r\n\r\n", b"--xYz\r\nX: " + b"y" * 9000],
)  # fmt: skip
def test_invalid_forms_are_rejected(form: bytes) -> None:
    """Truncated, empty, with two models or endless headers."""
    with pytest.raises(InvalidRequest):
        scanned(form, 100)


EMPTY_PART = b"\r\n--xYz\r\n\r\n"
DISPOSITION = b"--xYz\r\nContent-Disposition: form-data"


def test_forms_with_too_many_parts_or_headers_are_rejected() -> None:
    """With the limit; a form at the limits is not."""
    assert scanned(b"--xYz\r\n\r\n" + EMPTY_PART * (MAX_PARTS - 1) + b"\r\n--xYz--", 1000).model is None
    with pytest.raises(InvalidRequest, match=f"more than {MAX_PARTS} parts"):
        scanned(b"--xYz\r\n\r\n" + EMPTY_PART * MAX_PARTS, 1000)
    large = b"--xYz\r\nX-A: " + b"a" * (MAX_PART_HEAD - 20) + b"\r\n\r\n\r\n"
    assert scanned(large * (MAX_HEADS // MAX_PART_HEAD) + END, 1000).model is None
    with pytest.raises(InvalidRequest, match=f"larger than {MAX_HEADS // 1024} KB"):
        scanned(large * (MAX_HEADS // MAX_PART_HEAD + 1) + END, 1000)


@pytest.mark.parametrize(
    ("start", "unit"),
    [
        (b"--xYz\r\n\r\n", EMPTY_PART),
        (b"", b"--xYz\r\n" + b"a\r\n" * 2000 + b"\r\n\r\n"),
        (b"", DISPOSITION + b';a="' * 1900 + b"\\\r\n\r\n\r\n"),
        (b"", DISPOSITION + b";" * 8000 + b"\r\n\r\n\r\n"),
        (b"--xYz\r\n\r\n", b"\r\n--xY"),
    ],
)
def test_form_work_is_bounded(start: bytes, unit: bytes) -> None:
    """For any shape of 2 MB: before, 8 MB of empty parts took 11 s. A head's parameters are read once each."""
    form = start + unit * (2 * MB // len(unit))

    def scan() -> None:
        with contextlib.suppress(InvalidRequest):
            scanned(form, 256_000)

    assert calls(scan) < 150_000
    assert peak_memory(scan) < 2 * MB


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (b'form-data; name="model"', b"model"),
        (b"form-data;NAME = model", b"model"),
        (b'form-data; filename="; name=x"; name="model"', b"model"),
        (b'form-data; filename="a\\"; name=x"; name="model"', b"model"),
        (b'form-data; x; ; name="model"', b"model"),
        (b'form-data; filename="; name=model', b"file"),
        (b'form-data; filename="; name=model\\', b"file"),
        (b'form-data "; name=model"', b"file"),
    ],
)
def test_name_of_a_part(value: bytes, name: bytes) -> None:
    """Whatever other parameters the part has; a string that does not end is the rest of the header."""
    scanner = scanned(b"--xYz\r\nContent-Disposition: %b\r\n\r\nm\r\n" % value + END, 1000)
    assert scanner.model == ("m" if name == b"model" else None)


@pytest.mark.parametrize(
    ("content_type", "boundary"),
    [
        (b"multipart/form-data; boundary=abc", b"abc"),
        (b'Multipart/Form-Data; charset=utf-8; Boundary="a b;c"', None),
        (b'multipart/form-data; boundary="a=b:c"', b"a=b:c"),
        (b"application/json", None),
        (b"", None),
        (b"multipart/form-data", None),
        (b"multipart/form-data; boundary=", None),
    ],
)
def test_boundary_of_content_type(content_type: bytes, boundary: bytes | None) -> None:
    if boundary is None:
        with pytest.raises(InvalidRequest):
            boundary_of(content_type)
    else:
        assert boundary_of(content_type) == boundary


def form_body(limit: int, spool: Spool, memory: Allocation | None = None) -> FormBody:
    return FormBody(AUDIO, HEAD, limit, spool, memory or MemoryBudget(MB, MB).allocation("192.0.2.1"))


def gather(body: FormBody, model: str | None) -> bytes:
    length, first, pieces = body.pieces(model)
    data = b"".join((first, *pieces))
    assert len(data) == length
    return data


@pytest.mark.parametrize("size", [10, 3 * MB])
def test_form_is_rewritten(tmp_path: Path, size: int) -> None:
    """In memory or on disk: unchanged or with the name replaced, repeatedly."""
    body = form_body(10 * MB, Spool(tmp_path, 10 * MB, MB))
    form = part("file", b"\x01" * size) + part("model", b"fast") + part("language", b"en") + END
    for start in range(0, len(form), 100_000):
        body.add(form[start : start + 100_000])
    assert body.routing_request() == RoutingRequest(AUDIO, "fast")
    for _ in range(2):
        assert gather(body, None) == form
        assert gather(body, "Systran/whisper") == form.replace(b"\r\nfast\r\n", b"\r\nSystran/whisper\r\n")
    body.close()
    assert not list(tmp_path.iterdir())


def test_form_without_a_model_gets_one(tmp_path: Path) -> None:
    body = form_body(MB, Spool(tmp_path, MB, MB))
    body.add(FILE + END)
    assert body.routing_request().model is None
    assert gather(body, "w") == part("model", b"w") + FILE + END


def test_spool_quota_is_shared(tmp_path: Path) -> None:
    """Beyond it, 507; ended uploads free their space."""
    spool = Spool(tmp_path, 3 * MB, MB)
    first, second = (form_body(10 * MB, spool) for _ in range(2))
    first.add(b"--xYz\r\n\r\n" + b"x" * 2 * MB)
    with pytest.raises(SpoolFull) as full:
        second.add(b"--xYz\r\n\r\n" + b"x" * 2 * MB)
    assert full.value.headers["Retry-After"] == "10"
    for body in (first, second):
        body.close()
    assert spool.available == 3 * MB


@pytest.mark.parametrize("max_upload", [MB, 32 * MB, 2048 * MB])
def test_no_client_holds_the_whole_spool(tmp_path: Path, max_upload: int) -> None:
    """An address, or an IPv6 /64, has a share of it as of the memory; it returns with the upload."""
    spool, budget = Spool(tmp_path, 64 * MB, max_upload), MemoryBudget(MB, MB)
    held = [form_body(64 * MB, spool, budget.allocation(f"2001:db8::{number}")) for number in range(8)]

    def fill() -> None:
        for body in held * 9:
            body.add(b"--xYz\r\n\r\n" + b"x" * MB)

    with pytest.raises(SpoolFull, match="This client's uploads"):
        fill()
    assert spool.available >= 15 * MB
    other = form_body(4 * MB, spool, budget.allocation("2001:db8:0:1::1"))
    other.add(b"--xYz\r\n\r\n" + b"x" * 2 * MB)
    for body in (*held, other):
        body.close()
    assert spool.available == 64 * MB


@pytest.mark.parametrize("quota", [8 * MB, 10 * MB, 64 * MB])
def test_largest_upload_fits_into_an_empty_spool(tmp_path: Path, quota: int) -> None:
    body = form_body(8 * MB, Spool(tmp_path, quota, 8 * MB))
    body.add(b"--xYz\r\n\r\n" + b"x" * (8 * MB - 9))
    body.close()


def test_form_over_the_limit_is_413(tmp_path: Path) -> None:
    body = form_body(100, Spool(tmp_path, MB, MB))
    with pytest.raises(PayloadTooLarge, match="MAX_UPLOAD_MB"):
        body.add(b"x" * 101)


def test_unusable_spool_folder_is_reported(tmp_path: Path) -> None:
    body = form_body(10 * MB, Spool(tmp_path / "missing", 10 * MB, MB))
    with pytest.raises(ApiError, match="SPOOL_DIR"):
        body.add(b"--xYz\r\n\r\n" + b"x" * 2 * MB)
