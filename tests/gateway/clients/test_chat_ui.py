"""Chat UI in front of the gateway: its recorded calls, its rules for models, its microphone."""

import email.parser
import email.policy
import json
from pathlib import Path

import httpx2
import pytest

from gateway.bodies.memory_budget import MemoryBudget
from gateway.bodies.raw_audio import RawAudioBody, endpoint_of
from gateway.bodies.spool import MB, Spool, SpoolFull
from gateway.endpoints import TRANSCRIBE
from kit.errors import InvalidRequest, PayloadTooLarge
from tests.gateway.conftest import StartBackend, StartGateway
from tests.gateway.running import RunningGateway, error_code
from tests.support import chat_ui
from tests.support.backends.openai_backend import Received
from tests.support.chat_ui import Model, Refused, models_of

ALIASES = {"qwen": "fast|Qwen/Qwen", "minilm": "embedding|st/minilm", "whisper": "Systran/whisper"}
SERVICES = (
    ("llm-primary", "llm", "qwen"),
    ("llm-secondary", "llm", "tinyllama"),
    ("multimodal", "multimodal", "llava"),
    ("embedding", "embedding", "minilm"),
    ("reranker", "reranker", "ranker"),
    ("transcription", "transcription", "whisper"),
)


async def whole_cluster(start_backend: StartBackend, start_gateway: StartGateway, **settings: str) -> RunningGateway:
    """A gateway before one backend of every kind."""
    backends = [
        await start_backend(name, kind=kind, model=model, aliases=ALIASES.get(model, ""))
        for name, kind, model in SERVICES
    ]
    return await start_gateway(*backends, **settings)


async def answer(gateway: RunningGateway, call: bytes) -> tuple[int, dict[str, str], bytes]:
    """What a recorded call gets: status, headers, body. The connection is closed after it."""
    raw = await gateway.send_raw(call.replace(b"connection: keep-alive", b"connection: close"))
    head, _, body = raw.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return int(first.split()[1]), headers, body


async def test_every_model_is_accepted(start_backend: StartBackend, start_gateway: StartGateway) -> None:
    """No entry makes Chat UI refuse the list, and what it reads of each is right."""
    gateway = await whole_cluster(start_backend, start_gateway)
    status, _, body = await answer(gateway, chat_ui.get_models())
    assert status == 200
    models = models_of(json.loads(body))
    assert list(models) == ["cluster", "qwen", "tinyllama", "llava", "minilm", "ranker", "whisper"]
    assert models["qwen"] == Model("qwen", "qwen", "qwen", supports_tools=True, context_length=32768)
    assert models["tinyllama"] == Model("tinyllama", "tinyllama", "tinyllama", context_length=2048)
    assert models["llava"] == Model("llava", "llava", "llava", multimodal=True, context_length=4096)
    assert models["whisper"] == Model("whisper", "whisper", "whisper")
    assert not models["minilm"].multimodal
    # It promises what all keep, and takes pictures because one does.
    assert (models["cluster"].multimodal, models["cluster"].supports_tools) == (True, False)
    assert models["cluster"].context_length == 2048


async def test_first_model_is_the_cluster(start_backend: StartBackend, start_gateway: StartGateway) -> None:
    """Chat UI starts a new chat with the first model of the list."""
    embedding = await start_backend("embedding", kind="embedding", model="minilm")
    gateway = await start_gateway(embedding, await start_backend("llm-primary"))
    assert next(iter(models_of((await gateway.http.get("/v1/models")).json()))) == "cluster"


def test_overrides_add_no_models() -> None:
    listed = {"data": [{"id": "qwen"}, {"id": "minilm"}]}
    overrides = [
        {"name": "qwen", "displayName": "Qwen", "multimodal": True},
        {"id": "minilm", "unlisted": True},
        {"name": "absent"},
    ]
    models = models_of(listed, overrides)
    assert models == {
        "qwen": Model("qwen", "Qwen", multimodal=True),
        "minilm": Model("minilm", "minilm", unlisted=True),
    }


@pytest.mark.parametrize(
    "entry",
    [
        {},
        {"id": 1},
        {"id": "a", "description": None},
        {"id": "a", "providers": None},
        {"id": "a", "providers": [{"context_length": None}]},
        {"id": "a", "providers": [{"context_length": 0}]},
        {"id": "a", "providers": [{"supports_tools": None}]},
        {"id": "a", "architecture": {"input_modalities": None}},
        {"id": "a", "architecture": {"input_modalities": [None]}},
    ],
)
def test_rules_refuse_what_chat_ui_refuses(entry: dict[str, object]) -> None:
    """Null is not the same as absent."""
    with pytest.raises(Refused):
        models_of({"data": [entry]})


@pytest.mark.parametrize(
    ("body", "backend"),
    [(chat_ui.QUESTION, "llm-primary"), (chat_ui.TITLE, "llm-primary"), (chat_ui.PICTURE, "multimodal")],
    ids=["question", "title", "picture"],
)
async def test_chat(
    start_backend: StartBackend, start_gateway: StartGateway, body: dict[str, object], backend: str
) -> None:
    """The recorded calls of a question, of a title and of a picture are streamed to their end."""
    llm = await start_backend("llm-primary", model="qwen")
    vision = await start_backend("multimodal", kind="multimodal", model="llava")
    gateway = await start_gateway(llm, vision)
    status, headers, answered = await answer(gateway, chat_ui.chat(body))
    assert (status, headers["x-served-by"]) == (200, backend)
    assert headers["content-type"].startswith("text/event-stream")
    assert answered.count(b"token") == 4
    assert b"data: [DONE]\n\n" in answered
    # What it sent came to the engine as it was, but for the name that only the gateway knows.
    received: Received = (vision if backend == "multimodal" else llm).requests[0]
    assert received.json == body | {"model": {"llm-primary": "qwen", "multimodal": "llava"}[backend]}
    assert received.header("authorization") is None


async def test_keys(start_backend: StartBackend, start_gateway: StartGateway) -> None:
    """With keys set, every call of Chat UI needs one, the microphone's too; without, any key will do."""
    gateway = await whole_cluster(start_backend, start_gateway, gateway_api_keys="secret")
    calls = (
        chat_ui.get_models,
        lambda key: chat_ui.chat(chat_ui.QUESTION, key),
        lambda key: chat_ui.microphone("whisper", b"sound", key),
    )
    for call in calls:
        assert (await answer(gateway, call("none")))[0] == 401
        assert (await answer(gateway, call("secret")))[0] == 200


@pytest.mark.parametrize(("model", "sent"), [("whisper", "whisper"), ("Systran/whisper", "Systran/whisper")])
async def test_microphone(start_backend: StartBackend, start_gateway: StartGateway, model: str, sent: str) -> None:
    """The recorded call becomes a form with the recording, byte for byte; its answer has the text."""
    backend = await start_backend("transcription", kind="transcription", model="whisper", aliases="Systran/whisper")
    gateway = await start_gateway(backend)
    sound = bytes(range(256)) * 9
    status, headers, body = await answer(gateway, chat_ui.microphone(model, sound))
    assert (status, headers["x-served-by"], headers["x-served-model"]) == (200, "transcription", "whisper")
    assert isinstance(json.loads(body)["text"], str)
    received = backend.requests[0]
    assert received.target == "/v1/audio/transcriptions"
    assert form_of(received) == {"model": sent.encode(), "file": sound}
    assert b'filename="recording.webm"' in received.body
    assert received.header("authorization") is None


def form_of(received: Received) -> dict[str, bytes]:
    """The fields of a form, read by Python's own parser of MIME messages."""
    head = f"Content-Type: {received.header('content-type')}\r\n\r\n".encode()
    message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + received.body)
    parts = list(message.iter_parts())
    assert all(part.get_content_disposition() == "form-data" for part in parts)
    return {
        str(part.get_param("name", header="content-disposition")): part.get_payload(decode=True)  # type: ignore[misc]
        for part in parts
    }


async def test_cluster_is_the_best_transcription_backend(
    start_backend: StartBackend, start_gateway: StartGateway
) -> None:
    foreign = await start_backend("whisper-server", kind="transcription", model="Systran/whisper", ours=False)
    services = f"whisper-server={foreign.url};kind=transcription"
    gateway = await start_gateway(services=services)
    status, _, _ = await answer(gateway, chat_ui.microphone("cluster", b"sound"))
    assert status == 200
    assert form_of(foreign.requests[0])["model"] == b"Systran/whisper"


async def test_large_recording_is_retried(start_backend: StartBackend, start_gateway: StartGateway) -> None:
    """From the spool, on the second backend."""
    bad = await start_backend("a", kind="transcription", model="whisper", fail_rate=1.0, fail_status=503)
    good = await start_backend("b", kind="transcription", model="whisper")
    gateway = await start_gateway(bad, good)
    sound = b"\x00\r\n--" * 700_000
    response = await gateway.http.post("/transcribe/whisper", content=sound, headers={"content-type": "audio/wav"})
    assert (response.status_code, response.headers["x-served-by"]) == (200, "b")
    assert form_of(good.requests[0])["file"] == sound
    assert gateway.context.spool.available == 8192 * MB


@pytest.mark.parametrize(
    ("path", "content_type", "body", "status", "code"),
    [
        ("/transcribe/whisper", "application/json", b"{}", 400, "invalid_request_error"),
        ("/transcribe/whisper", "", b"x", 400, "invalid_request_error"),
        ("/transcribe/whisper", "audio/webm", b"", 400, "invalid_audio"),
        ("/transcribe/a%0d%0ab", "audio/webm", b"x", 400, "invalid_request_error"),
        ("/transcribe/%ff", "audio/webm", b"x", 400, "invalid_request_error"),
        ("/transcribe/qwen", "audio/webm", b"x", 400, "wrong_model_kind"),
        ("/transcribe/nobody", "audio/webm", b"x", 404, "model_not_found"),
        ("/transcribe/", "audio/webm", b"x", 404, "not_found"),
    ],
)
async def test_invalid_recordings_reach_no_backend(
    start_backend: StartBackend,
    start_gateway: StartGateway,
    path: str,
    content_type: str,
    body: bytes,
    status: int,
    code: str,
) -> None:
    llm, speech = await start_backend(), await start_backend("speech", kind="transcription", model="whisper")
    gateway = await start_gateway(llm, speech)
    response = await gateway.http.post(path, content=body, headers={"content-type": content_type})
    assert response.status_code == status
    assert response.json()["error"]["code"] in (code, None) or response.json()["error"]["type"] == code
    assert not llm.requests
    assert not speech.requests


async def test_recordings_have_the_upload_limit(start_backend: StartBackend, start_gateway: StartGateway) -> None:
    """With and without a Content-Length."""
    speech = await start_backend("speech", kind="transcription", model="whisper")
    gateway = await start_gateway(speech, max_upload_mb=2, max_body_mb=1)
    headers = {"content-type": "audio/wav"}

    async def post(content: bytes) -> httpx2.Response:
        return await gateway.http.post("/transcribe/whisper", content=content, headers=headers)

    assert (await post(b"x" * MB * 2)).status_code == 200
    refused = await post(b"x" * (MB * 2 + 1))
    assert (refused.status_code, error_code(refused)) == (413, "request_too_large")
    assert "MAX_UPLOAD_MB" in refused.text


WEBM = b"audio/webm;codecs=opus"


def raw_audio(limit: int, spool: Spool, content_type: bytes = WEBM) -> RawAudioBody:
    memory = MemoryBudget(MB, MB).allocation("192.0.2.1")
    return RawAudioBody(TRANSCRIBE, b"/transcribe/whisper", content_type, limit, spool, memory)


def test_large_recording_is_spooled(tmp_path: Path) -> None:
    """Within the quota, and removed afterwards."""
    spool = Spool(tmp_path, 3 * MB, MB)
    body = raw_audio(8 * MB, spool)
    body.add(b"x" * 2 * MB)
    assert spool.available == MB
    with pytest.raises(SpoolFull):
        body.add(b"x" * 2 * MB)
    body.close()
    assert spool.available == 3 * MB
    with pytest.raises(PayloadTooLarge):
        raw_audio(4, spool).add(b"12345")


@pytest.mark.parametrize(
    ("content_type", "name"),
    [
        (b"audio/webm; codecs=opus", b"recording.webm"),
        (b"Audio/X-WAV", b"recording.wav"),
        (b"video/mp4", b"recording.mp4"),
        (b"application/octet-stream", b"recording.bin"),
        (b"text/plain", None),
        (b'audio/"\r\nX: y', None),
        (b"audio/", None),
    ],
)
def test_content_types(tmp_path: Path, content_type: bytes, name: bytes | None) -> None:
    """A recording is known by its content type, which goes into the form without a way to break it."""
    if name is None:
        with pytest.raises(InvalidRequest):
            raw_audio(MB, Spool(tmp_path, MB, MB), content_type)
        return
    body = raw_audio(MB, Spool(tmp_path, MB, MB), content_type)
    body.add(b"x")
    length, first, pieces = body.pieces(None)
    form = b"".join((first, *pieces))
    assert len(form) == length
    assert b'filename="%b"' % name in form


def test_paths_of_the_route() -> None:
    assert endpoint_of(b"/transcribe/whisper") is endpoint_of(b"/transcribe/a/b") is TRANSCRIBE
    assert endpoint_of(b"/transcribe/") is endpoint_of(b"/transcribe") is endpoint_of(b"/v1/transcribe/x") is None
