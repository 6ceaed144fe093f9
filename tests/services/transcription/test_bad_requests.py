"""What a client may get wrong: each a 4xx in the envelope that says what to change, and nobody else is disturbed."""

import threading
from typing import Any

import httpx2
import pytest

from tests.services.transcription.conftest import Start
from tests.services.transcription.fake_engine import FakeEngine
from tests.services.transcription.recordings import silent_video, tone, wav

GOOD = wav(tone(2.0))
FILE = {"file": ("a.wav", GOOD, "audio/wav")}

# The case, the form's text fields, its files, the status, what the message says.
BAD: list[tuple[str, dict[str, Any], Any, int, str]] = [
    ("nothing", {}, {}, 400, "0 fields named file"),
    ("no file", {"model": "tiny"}, {}, 400, "0 fields named file"),
    ("text for a file", {"file": "hello"}, {}, 400, "file is text"),
    ("text part for a file", {"file": "hello"}, {"other": ("", b"x")}, 400, "file is text"),
    ("empty file", {}, {"file": ("a.wav", b"")}, 400, "The file is empty"),
    ("garbage", {}, {"file": ("a.wav", b"no sound at all" * 99)}, 400, "not audio that can be decoded"),
    ("zeros", {}, {"file": ("a.mp3", b"\0" * 99_999)}, 400, "not audio that can be decoded"),
    ("only a header", {}, {"file": ("a.wav", GOOD[:44])}, 400, "0.1 is the least"),
    ("too short", {}, {"file": ("a.wav", wav(tone(0.05)))}, 400, "0.1 is the least"),
    ("no sound", {}, {"file": ("a.mp4", silent_video())}, 400, "no audio stream"),
    ("playlist", {}, {"file": ("a.m3u8", b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:1/a.wav\n")}, 400, "not audio"),
    ("script", {}, {"file": ("a.txt", b"ffconcat version 1.0\nfile /etc/passwd\n")}, 400, "not audio"),
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
    ("stream of subtitles", {"stream": "true", "response_format": "srt"}, FILE, 400, "json or text"),
    ("stream in words", {"stream": "perhaps"}, FILE, 400, "stream is 'perhaps'"),
    ("vad in words", {"vad_filter": "sometimes"}, FILE, 400, "vad_filter is 'sometimes'"),
    ("a prompt like a book", {"prompt": "a" * 70_000}, FILE, 400, "maximum size"),
    ("too many fields", {f"field{n}": "x" for n in range(40)}, FILE, 400, "Too many fields"),
]

RAW = [
    ("application/json", b"{}", "0 fields named file"),
    ("audio/wav", GOOD, "0 fields named file"),
    ("multipart/form-data", b"abc", "boundary"),
    ("multipart/form-data; boundary=b", b"no form", "Invalid multipart"),
    ("multipart/form-data; boundary=b", b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b--\r\n", '"name"'),
    ("application/x-www-form-urlencoded", b"file=abc", "file is text"),
]


def check(answer: httpx2.Response, status: int, says: str) -> None:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert says in error["message"]


@pytest.fixture(scope="module")
def started(module_start: Start) -> Any:
    engine = FakeEngine()
    with module_start(engine, max_audio_seconds=10) as client:
        yield engine, client


@pytest.mark.parametrize(("case", "fields", "files", "status", "says"), BAD, ids=[case[0] for case in BAD])
@pytest.mark.parametrize("route", ["transcriptions", "translations"])
def test_bad_form(started: Any, route: str, case: str, fields: Any, files: Any, status: int, says: str) -> None:
    """Wrong forms and wrong files are told apart and named."""
    check(started[1].post(f"/v1/audio/{route}", data=fields, files=files), status, says)


@pytest.mark.parametrize(("kind", "body", "says"), RAW)
def test_bad_bytes(started: Any, kind: str, body: bytes, says: str) -> None:
    """So are bodies that are no form."""
    check(started[1].post("/v1/audio/transcriptions", content=body, headers={"content-type": kind}), 400, says)


@pytest.mark.parametrize(
    ("model", "body", "status", "says"),
    [
        ("gpt-4", GOOD, 404, "'gpt-4' does not exist"),
        ("tiny", b"", 400, "The body is empty"),
        ("tiny", b"no sound", 400, "not audio"),
        ("tiny", wav(tone(12.0)), 413, "MAX_AUDIO_SECONDS"),
    ],
)
def test_bad_raw_audio(started: Any, model: str, body: bytes, status: int, says: str) -> None:
    """The microphone's route says what is wrong too."""
    check(started[1].post(f"/transcribe/{model}", content=body), status, says)


def test_too_large(start: Start, engine: FakeEngine) -> None:
    """A body over MAX_UPLOAD_MB is a 413, whether it announces its size or not."""
    large = wav(tone(40.0))
    with start(engine, max_upload_mb=1) as client:
        for content in (large, iter([large[:700_000], large[700_000:]])):
            check(client.post("/transcribe/tiny", content=content), 413, "raise MAX_UPLOAD_MB")
        check(client.post("/v1/audio/transcriptions", files={"file": ("a.wav", large)}), 413, "MAX_UPLOAD_MB")
        assert client.post("/v1/audio/transcriptions", files=FILE).status_code == 200


def test_english_only(start: Start) -> None:
    """An English-only model cannot translate, and takes no other language."""
    with start(FakeEngine(languages=["en"])) as client:
        check(client.post("/v1/audio/translations", files=FILE), 400, "cannot translate")
        check(client.post("/v1/audio/transcriptions", files=FILE, data={"language": "de"}), 400, "English only")


def test_a_good_request_in_flight_is_not_disturbed(started: Any) -> None:
    """While every bad request is refused at once, one that is being heard goes on and succeeds."""
    engine, client = started
    engine.hold()
    good: list[httpx2.Response] = []
    thread = threading.Thread(target=lambda: good.append(client.post("/v1/audio/transcriptions", files=FILE)))
    thread.start()
    try:
        engine.wait_until_hearing()
        for case, fields, files, status, says in BAD:
            if case not in ("only a header", "too short", "too long"):  # these wait for their turn to be decoded
                check(client.post("/v1/audio/transcriptions", data=fields, files=files), status, says)
    finally:
        engine.gate.set()
        thread.join(20)
    assert good[0].json()["text"] == "word 0. word 1."
