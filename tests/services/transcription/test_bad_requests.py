"""Invalid requests: each is a 4xx in the envelope with a clear message, and other requests are unaffected."""

import threading
from typing import Any

import httpx2
import pytest

from tests.services.fake_service import Start, check_error
from tests.services.transcription.fake_engine import FakeEngine
from tests.services.transcription.recordings import silent_video, tone, wav

GOOD = wav(tone(2.0))
FILE = {"file": ("a.wav", GOOD, "audio/wav")}

# Case, text fields, files, status, part of the message.
BAD: list[tuple[str, dict[str, Any], Any, int, str]] = [
    ("nothing", {}, {}, 400, "0 fields named file"),
    ("no file", {"model": "tiny"}, {}, 400, "0 fields named file"),
    ("text for a file", {"file": "hello"}, {}, 400, "file is a text field"),
    ("text part for a file", {"file": "hello"}, {"other": ("", b"x")}, 400, "file is a text field"),
    ("empty file", {}, {"file": ("a.wav", b"")}, 400, "The file is empty"),
    ("garbage", {}, {"file": ("a.wav", b"not audio at all" * 99)}, 400, "could not be decoded"),
    ("zeros", {}, {"file": ("a.mp3", b"\0" * 99_999)}, 400, "could not be decoded"),
    ("only a header", {}, {"file": ("a.wav", GOOD[:44])}, 400, "the minimum is 0.1"),
    ("too short", {}, {"file": ("a.wav", wav(tone(0.05)))}, 400, "the minimum is 0.1"),
    ("no sound", {}, {"file": ("a.mp4", silent_video())}, 400, "no audio stream"),
    (
        "playlist",
        {},
        {"file": ("a.m3u8", b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:1/a.wav\n")},
        400,
        "could not be decoded",
    ),
    (
        "script",
        {},
        {"file": ("a.txt", b"ffconcat version 1.0\nfile /etc/passwd\n")},
        400,
        "could not be decoded",
    ),
    ("too long", {}, {"file": ("a.wav", wav(tone(12.0)))}, 413, "MAX_AUDIO_SECONDS"),
    ("two files", {}, [("file", FILE["file"]), ("file", FILE["file"])], 400, "Too many files"),
    ("unknown model", {"model": "whisper-1"}, FILE, 404, "'whisper-1' does not exist"),
    ("file as model", {}, {"model": ("m", b"tiny")}, 400, "model is a file"),
    ("unknown format", {"response_format": "pdf"}, FILE, 400, "json, text, srt, vtt, verbose_json"),
    ("diarized format", {"response_format": "diarized_json"}, FILE, 400, "response_format"),
    ("unknown language", {"language": "klingon"}, FILE, 400, "ISO 639-1"),
    ("language not of this model", {"language": "ja"}, FILE, 400, "de, en, fr"),
    ("negative temperature", {"temperature": "-0.1"}, FILE, 400, "from 0 to 1"),
    ("high temperature", {"temperature": "2"}, FILE, 400, "from 0 to 1"),
    ("NaN", {"temperature": "nan"}, FILE, 400, "from 0 to 1"),
    ("infinity", {"temperature": "inf"}, FILE, 400, "from 0 to 1"),
    ("temperature in words", {"temperature": "warm"}, FILE, 400, "from 0 to 1"),
    ("granularity without verbose", {"timestamp_granularities[]": "word"}, FILE, 400, "needs response_format"),
    (
        "unknown granularity",
        {"timestamp_granularities[]": ["word", "letter"], "response_format": "verbose_json"},
        FILE,
        400,
        "'letter'",
    ),
    (
        "unknown granularity of a list",
        {"timestamp_granularities": "word,letter", "response_format": "verbose_json"},
        FILE,
        400,
        "'letter'",
    ),
    ("log probabilities", {"include[]": "logprobs"}, FILE, 400, "include is 'logprobs'"),
    ("log probabilities by index", {"include[0]": "logprobs"}, FILE, 400, "include is 'logprobs'"),
    ("file as granularity", {}, {**FILE, "timestamp_granularities[]": ("m", b"word")}, 400, "Too many files"),
    ("stream of subtitles", {"stream": "true", "response_format": "srt"}, FILE, 400, "json or text"),
    ("stream in words", {"stream": "perhaps"}, FILE, 400, "stream is 'perhaps'"),
    ("vad in words", {"vad_filter": "sometimes"}, FILE, 400, "vad_filter is 'sometimes'"),
    ("very long prompt", {"prompt": "a" * 70_000}, FILE, 400, "maximum size"),
    ("too many fields", {f"field{n}": "x" for n in range(40)}, FILE, 400, "Too many fields"),
]

RAW = [
    ("application/json", b"{}", "0 fields named file"),
    ("audio/wav", GOOD, "0 fields named file"),
    ("multipart/form-data", b"abc", "boundary"),
    ("multipart/form-data; boundary=b", b"no form", "Invalid multipart"),
    ("multipart/form-data; boundary=b", b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b--\r\n", '"name"'),
    ("application/x-www-form-urlencoded", b"file=abc", "file is a text field"),
]


@pytest.fixture(scope="module")
def started(module_start: Start) -> Any:
    engine = FakeEngine()
    with module_start(engine, max_audio_seconds=10) as client:
        yield engine, client


@pytest.mark.parametrize(("case", "fields", "files", "status", "message"), BAD, ids=[case[0] for case in BAD])
@pytest.mark.parametrize("route", ["transcriptions", "translations"])
def test_invalid_forms_are_rejected(
    started: Any, route: str, case: str, fields: Any, files: Any, status: int, message: str
) -> None:
    check_error(started[1].post(f"/v1/audio/{route}", data=fields, files=files), status, message)


@pytest.mark.parametrize(("kind", "body", "message"), RAW)
def test_bodies_that_are_not_forms_are_rejected(started: Any, kind: str, body: bytes, message: str) -> None:
    check_error(started[1].post("/v1/audio/transcriptions", content=body, headers={"content-type": kind}), 400, message)


@pytest.mark.parametrize(
    ("model", "body", "status", "message"),
    [
        ("gpt-4", GOOD, 404, "'gpt-4' does not exist"),
        ("tiny", b"", 400, "The body is empty"),
        ("tiny", b"not audio", 400, "could not be decoded"),
        ("tiny", wav(tone(12.0)), 413, "MAX_AUDIO_SECONDS"),
    ],
)
def test_invalid_raw_audio_is_rejected(started: Any, model: str, body: bytes, status: int, message: str) -> None:
    check_error(started[1].post(f"/transcribe/{model}", content=body), status, message)


def test_body_over_max_upload_mb_is_a_413(start: Start, engine: FakeEngine) -> None:
    """With and without Content-Length."""
    large = wav(tone(40.0))
    with start(engine, max_upload_mb=1) as client:
        for content in (large, iter([large[:700_000], large[700_000:]])):
            check_error(client.post("/transcribe/tiny", content=content), 413, "raise MAX_UPLOAD_MB")
        check_error(client.post("/v1/audio/transcriptions", files={"file": ("a.wav", large)}), 413, "MAX_UPLOAD_MB")
        assert client.post("/v1/audio/transcriptions", files=FILE).status_code == 200


def test_english_only_model_rejects_other_languages(start: Start) -> None:
    with start(FakeEngine(languages=["en"])) as client:
        check_error(client.post("/v1/audio/translations", files=FILE), 400, "cannot translate")
        check_error(client.post("/v1/audio/transcriptions", files=FILE, data={"language": "de"}), 400, "English only")


def test_valid_request_in_flight_is_unaffected(started: Any) -> None:
    engine, client = started
    engine.gate.close()
    good: list[httpx2.Response] = []
    thread = threading.Thread(target=lambda: good.append(client.post("/v1/audio/transcriptions", files=FILE)))
    thread.start()
    try:
        engine.gate.wait_until_reached()
        for case, fields, files, status, message in BAD:
            if case not in ("only a header", "too short", "too long"):  # rejected only when they are decoded
                check_error(client.post("/v1/audio/transcriptions", data=fields, files=files), status, message)
    finally:
        engine.gate.open()
        thread.join(20)
    assert good[0].json()["text"] == "word 0. word 1."
