"""The service over HTTP with a fake engine: formats, options, streaming, queue, disconnects, keys."""

import contextlib
import json
import socket
import threading
from typing import Any

import httpx2
import pytest
from openai import OpenAI

from kit.config.settings import SettingsError
from services.transcription.engine import Options
from tests.services.fake_service import WAIT_S, Start, wait_for_metric
from tests.services.transcription.fake_engine import FakeEngine
from tests.services.transcription.recordings import encoded, tone, wav

FILE = {"file": ("a.wav", wav(tone(2.0)), "audio/wav")}
TEXT = "word 0. word 1."


@pytest.fixture
def openai(client: httpx2.Client) -> Any:
    with OpenAI(base_url=f"{client.base_url}/v1", api_key="none", max_retries=0) as openai:
        yield openai


@pytest.mark.parametrize("model", [None, "", "tiny", "small", "org/tiny-model"])
def test_every_name_of_the_model_is_accepted(client: httpx2.Client, model: str | None) -> None:
    """Catalogue name, alias, repository, or none."""
    answer = client.post("/v1/audio/transcriptions", files=FILE, data={} if model is None else {"model": model})
    assert answer.json() == {"text": TEXT, "usage": {"type": "duration", "seconds": 2}}


@pytest.mark.parametrize("name", ["tiny", "small", "org/tiny-model"])
def test_raw_audio_is_transcribed(client: httpx2.Client, name: str) -> None:
    """Chat UI's microphone posts raw webm from most browsers, and reads `text`."""
    answer = client.post(
        f"/transcribe/{name}", content=encoded("webm", "libopus", 2.0), headers={"content-type": "audio/webm"}
    )
    assert answer.json() == {"text": TEXT}


# OpenAI removes its translations route in 2027; ours stays.
@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")
def test_openai_client_parses_every_format(openai: OpenAI) -> None:
    create: Any = openai.audio.transcriptions.create
    assert create(model="tiny", file=FILE["file"]).text == TEXT
    assert create(model="tiny", file=FILE["file"], response_format="text") == TEXT + "\n"
    assert create(model="tiny", file=FILE["file"], response_format="srt").startswith("1\n00:00:00,000 --> ")
    assert create(model="tiny", file=FILE["file"], response_format="vtt").startswith("WEBVTT\n\n00:00:00.000 --> ")
    verbose = create(
        model="tiny", file=FILE["file"], response_format="verbose_json", timestamp_granularities=["word", "segment"]
    )
    assert (verbose.language, verbose.duration) == ("english", 2.0)
    assert [segment.text for segment in verbose.segments] == [" word 0.", " word 1."]
    assert [(word.word, word.start) for word in verbose.words] == [
        ("word", 0),
        ("0.", 0.5),
        ("word", 1),
        ("1.", 1.5),
    ]
    assert openai.audio.translations.create(model="tiny", file=FILE["file"]).text == TEXT
    translated: Any = openai.audio.translations.create(model="tiny", file=FILE["file"], response_format="verbose_json")
    assert (translated.language, len(translated.segments)) == ("english", 2)


def test_streamed_events_join_to_the_text(openai: OpenAI) -> None:
    events = list(openai.audio.transcriptions.create(model="tiny", file=FILE["file"], stream=True))
    assert [event.type for event in events[:-1]] == ["transcript.text.delta"] * 2
    assert "".join(event.delta for event in events if event.type == "transcript.text.delta") == TEXT
    assert events[-1].type == "transcript.text.done"
    assert events[-1].text == TEXT


def test_segments_are_streamed_as_they_are_recognized(client: httpx2.Client, engine: FakeEngine) -> None:
    engine.permits = threading.Semaphore(1)
    with client.stream("POST", "/v1/audio/transcriptions", files=FILE, data={"stream": "true"}) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = (line for line in answer.iter_lines() if line)
        assert json.loads(next(lines)[6:]) == {"type": "transcript.text.delta", "delta": "word 0."}
        assert engine.transcribed == ["word 0"]
        engine.permits.release()
        assert json.loads(next(lines)[6:])["delta"] == " word 1."
        assert json.loads(next(lines)[6:]) == {"type": "transcript.text.done", "text": TEXT}


def test_engine_failure_ends_the_stream_with_an_error_event(client: httpx2.Client, engine: FakeEngine) -> None:
    """The next request succeeds."""
    engine.fails_at = 1
    answer = client.post("/v1/audio/transcriptions", files=FILE, data={"stream": "true"})
    last = json.loads(answer.text.strip().split("\n\n")[-1].removeprefix("data: "))
    assert last["error"]["type"] == "internal_error"
    assert "out of memory" not in answer.text
    failed = client.post("/v1/audio/transcriptions", files=FILE)
    assert failed.status_code == 500
    engine.fails_at = None
    assert client.post("/v1/audio/transcriptions", files=FILE).status_code == 200


def test_permanently_failed_engine_ends_the_service(start: Start, engine: FakeEngine) -> None:
    """/health reports the reason, and the process is asked to stop."""
    ended = threading.Event()
    with start(engine, end=ended.set) as client:
        engine.fails_at = 0
        for _ in range(3):
            assert not ended.is_set()
            assert client.post("/v1/audio/transcriptions", files=FILE).status_code == 500
        assert ended.wait(WAIT_S)
        health = client.get("/health")
        assert (health.status_code, health.json()["status"]) == (503, "failed")
        assert "out of memory" in health.json()["detail"]
        assert client.post("/v1/audio/transcriptions", files=FILE).status_code == 503


def test_a_recording_that_always_fails_does_not_fail_the_engine(start: Start, engine: FakeEngine) -> None:
    ended = threading.Event()
    with start(engine, end=ended.set) as client:
        engine.fails_at = 1
        for _ in range(5):
            assert client.post("/v1/audio/transcriptions", files=FILE).status_code == 500
        assert not ended.is_set()
        assert client.get("/health").status_code == 200


def test_form_fields_reach_the_engine(client: httpx2.Client, engine: FakeEngine) -> None:
    """Omitted fields have the service's defaults."""
    client.post("/v1/audio/transcriptions", files=FILE)
    fields = {
        "language": "German",
        "prompt": "Guten Tag",
        "temperature": "0.4",
        "vad_filter": "false",
        "response_format": "verbose_json",
        "timestamp_granularities[]": ["word"],
    }
    client.post("/v1/audio/translations", files=FILE, data=fields)
    assert engine.requests == [
        Options(text_only=True),
        Options(task="translate", language="de", prompt="Guten Tag", temperature=0.4, words=True, vad=False),
    ]


@pytest.mark.parametrize(
    "fields",
    [
        {"timestamp_granularities": "word"},
        {"timestamp_granularities": ["segment", "word"]},
        {"timestamp_granularities[]": ["segment", "word"]},
        {"timestamp_granularities[0]": "word"},
        {"timestamp_granularities[0]": "segment", "timestamp_granularities[1]": "word"},
        {"timestamp_granularities": "segment, word"},
        {"timestamp_granularities[]": "segment,word"},
        {"timestamp_granularities": '["word"]'},
        {"timestamp_granularities": '["segment", "word"]'},
    ],
    ids=str,
)
def test_word_times_are_granted_for_every_spelling_of_the_field(client: httpx2.Client, fields: dict[str, Any]) -> None:
    """OpenAI's clients send `timestamp_granularities[]`, others index it or send a list as text."""
    data = {"response_format": "verbose_json"} | fields
    answer = client.post("/v1/audio/transcriptions", files=FILE, data=data).json()
    assert [word["word"] for word in answer["words"]] == ["word", "0.", "word", "1."]
    assert ("segments" in answer) == ("segment" in str(fields))


@pytest.mark.parametrize("route", ["transcriptions", "translations"])
def test_empty_optional_fields_are_absent(client: httpx2.Client, engine: FakeEngine, route: str) -> None:
    """Clients send null in a form as an empty value. Every optional field, one by one and all together."""
    schema = client.get("/openapi.json").json()["paths"][f"/v1/audio/{route}"]["post"]["requestBody"]
    fields = schema["content"]["multipart/form-data"]["schema"]["properties"]
    optional = [*(name for name in fields if name != "file"), "include[]", "timestamp_granularities"]
    assert len(optional) >= 10
    without = client.post(f"/v1/audio/{route}", files=FILE)
    for names in (*([name] for name in optional), optional):
        answer = client.post(f"/v1/audio/{route}", files=FILE, data=dict.fromkeys(names, ""))
        assert (answer.status_code, answer.json()) == (200, without.json()), names
    assert set(engine.requests) == {engine.requests[0]}


def test_vad_filter_setting_is_the_default(start: Start, engine: FakeEngine) -> None:
    with start(engine, vad_filter=False) as client:
        client.post("/v1/audio/transcriptions", files=FILE)
        client.post("/v1/audio/transcriptions", files=FILE, data={"vad_filter": "true"})
    assert [options.vad for options in engine.requests] == [False, True]


def test_full_queue_is_a_429_before_the_upload_is_read(start: Start, engine: FakeEngine) -> None:
    """/health stays 200, and queued recordings succeed."""
    with start(engine, max_queue=2) as client:
        engine.gate.close()
        answers: list[httpx2.Response] = []
        threads = [
            threading.Thread(target=lambda: answers.append(client.post("/v1/audio/transcriptions", files=FILE)))
            for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        wait_for_metric(client, "transcription_recordings_in_flight", 2)
        assert client.get("/health").status_code == 200
        for refused in (
            client.post("/v1/audio/transcriptions", files=FILE),
            client.post("/transcribe/tiny", content=FILE["file"][1]),
        ):
            assert refused.status_code == 429
            assert refused.json()["error"]["code"] == "busy"
            assert int(refused.headers["retry-after"]) >= 1
        engine.gate.open()
        for thread in threads:
            thread.join(WAIT_S)
        assert [answer.json()["text"] for answer in answers] == [TEXT, TEXT]
        assert client.post("/v1/audio/transcriptions", files=FILE).status_code == 200


@pytest.mark.parametrize("path", ["/v1/audio/transcriptions", "/transcribe/tiny"])
def test_uploads_count_against_the_queue(start: Start, engine: FakeEngine, path: str) -> None:
    """From the first byte: endless uploads would fill the disk."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n"
        "Content-Type: multipart/form-data; boundary=b\r\n\r\n--b\r\n"
    )
    with start(engine, max_queue=1) as client:
        with contextlib.closing(socket.create_connection((client.base_url.host, client.base_url.port))) as slow:
            slow.sendall(head.encode())
            wait_for_metric(client, "transcription_recordings_in_flight", 1)
            assert client.post("/v1/audio/transcriptions", files=FILE).status_code == 429
            assert client.post("/transcribe/tiny", content=FILE["file"][1]).status_code == 429
        wait_for_metric(client, "transcription_recordings_in_flight", 0)
        assert client.post("/v1/audio/transcriptions", files=FILE).status_code == 200


@pytest.mark.parametrize("stream", ["false", "true"])
def test_disconnect_cancels_the_recognition(client: httpx2.Client, engine: FakeEngine, stream: str) -> None:
    engine.gate.close()
    request = client.build_request("POST", "/v1/audio/transcriptions", files=FILE, data={"stream": stream})
    body = request.read()
    head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
    with contextlib.closing(socket.create_connection((client.base_url.host, client.base_url.port))) as leaving:
        leaving.sendall(f"POST /v1/audio/transcriptions HTTP/1.1\r\n{head}\r\n".encode() + body)
        engine.gate.wait_until_reached()
    wait_for_metric(client, "transcription_recordings_in_flight", 0)
    engine.gate.open()
    assert client.post("/v1/audio/transcriptions", files=FILE).json()["text"] == TEXT
    assert engine.transcribed == ["word 0", "word 0", "word 1"]


def test_audio_waiting_and_processing_are_counted(client: httpx2.Client) -> None:
    client.post("/v1/audio/transcriptions", files=FILE)
    text = client.get("/metrics").text
    assert "transcription_audio_seconds_total 2.0" in text
    assert "transcription_seconds_count 1.0" in text
    assert "transcription_wait_seconds_count 1.0" in text
    assert "transcription_recordings_in_flight 0.0" in text


def test_api_keys_guard_every_audio_route(start: Start, engine: FakeEngine) -> None:
    """Including /transcribe, which is not under /v1."""
    with start(engine, api_keys="secret") as client:
        assert client.post("/v1/audio/transcriptions", files=FILE).status_code == 401
        assert client.post("/transcribe/tiny", content=FILE["file"][1]).status_code == 401
        with_key = {"authorization": "Bearer secret"}
        assert client.post("/transcribe/tiny", content=FILE["file"][1], headers=with_key).status_code == 200


def test_stop_closes_the_engine_and_the_thread(start: Start, engine: FakeEngine) -> None:
    with start(engine) as client:
        client.post("/v1/audio/transcriptions", files=FILE)
    assert engine.closed
    assert not [thread for thread in threading.enumerate() if thread.name == "transcription worker"]


def test_model_of_another_kind_fails_at_start(start: Start, engine: FakeEngine) -> None:
    with pytest.raises(SettingsError, match="this service supports transcription"), start(engine, model="chat"):
        pass


def test_openapi_describes_the_form(client: httpx2.Client) -> None:
    schema = client.get("/openapi.json").json()["paths"]["/v1/audio/transcriptions"]["post"]["requestBody"]
    assert "file" in schema["content"]["multipart/form-data"]["schema"]["properties"]
