"""The engine with the real Whisper base model."""

import io
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from openai import OpenAI

from kit.config.settings import load_settings
from services.transcription.audio import RATE, decode
from services.transcription.engine import Options
from services.transcription.settings import TranscriptionSettings
from services.transcription.whisper import WhisperEngine, open_engine
from tests.services.fake_service import Start
from tests.services.transcription.recordings import wav
from tests.support import models

pytestmark = pytest.mark.engines

QUICKSTART = Path(__file__).resolve().parents[3] / "quickstart"
SPEECH = QUICKSTART / "sentence.wav"
FILE = ("sentence.wav", SPEECH.read_bytes(), "audio/wav")


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


SPOKEN = words((QUICKSTART / "sentence.txt").read_text())


@pytest.fixture(scope="module")
def whisper() -> Path:
    return models.folder("whisper")


@pytest.fixture(scope="module")
def engine(whisper: Path) -> Any:
    return open_engine(whisper, load_settings(TranscriptionSettings, device="cpu"), lambda *_: None)


@pytest.fixture(scope="module")
def client(module_start: Start, whisper: Path) -> Iterator[httpx2.Client]:
    with module_start(None, open_engine=open_engine, model_dir=whisper) as client:
        yield client


@pytest.fixture(scope="module")
def openai(client: httpx2.Client) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{client.base_url}/v1", api_key="none", max_retries=0) as openai:
        yield openai


def test_json_has_the_spoken_words(openai: OpenAI) -> None:
    answer = openai.audio.transcriptions.create(model="tiny", file=FILE)
    assert words(answer.text) == SPOKEN
    assert answer.usage is not None
    assert answer.usage.type == "duration"


def test_subtitles_have_the_spoken_words(openai: OpenAI) -> None:
    create: Any = openai.audio.transcriptions.create
    for response_format, head in (("srt", "1\n00:00:00,000 --> 00:00:0"), ("vtt", "WEBVTT\n\n00:00:00"), ("text", "")):
        answer = create(model="tiny", file=FILE, response_format=response_format, language="en")
        assert answer.startswith(head)
        assert words(answer.splitlines()[-1]) == SPOKEN


def test_verbose_json_has_increasing_times(openai: OpenAI) -> None:
    """The language is detected."""
    answer: Any = openai.audio.transcriptions.create(
        model="tiny", file=FILE, response_format="verbose_json", timestamp_granularities=["word", "segment"]
    )
    assert answer.language == "english"
    assert [words(word.word)[0] for word in answer.words] == SPOKEN
    times = [time for word in answer.words for time in (word.start, word.end)]
    assert times == sorted(times)
    assert 0 <= times[0] < times[-1] <= answer.duration + 0.1
    assert answer.segments[0].tokens


def test_deltas_join_to_the_text(openai: OpenAI) -> None:
    *deltas, done = openai.audio.transcriptions.create(model="tiny", file=FILE, stream=True)
    assert done.type == "transcript.text.done"
    assert words(done.text) == SPOKEN
    assert "".join(event.delta for event in deltas if event.type == "transcript.text.delta") == done.text


def test_silence_has_no_text(openai: OpenAI) -> None:
    for seconds in (1, 40):
        silence = ("silence.wav", wav(np.zeros(seconds * RATE, np.int16)), "audio/wav")
        answer: Any = openai.audio.transcriptions.create(model="tiny", file=silence, response_format="verbose_json")
        assert (answer.text, answer.segments, answer.duration) == ("", [], seconds)


def test_health_responds_during_a_transcription(client: httpx2.Client) -> None:
    """The engine does not block the event loop."""
    done = threading.Event()
    answers: list[httpx2.Response] = []

    def transcribe() -> None:
        answers.append(client.post("/v1/audio/transcriptions", files={"file": FILE}))
        done.set()

    thread = threading.Thread(target=transcribe)
    thread.start()
    checks = 0
    while not done.is_set():
        checks += client.get("/health").status_code == 200
    thread.join()
    assert answers[0].status_code == 200
    assert checks > 20


@pytest.mark.parametrize("text_only", [False, True])
def test_times_after_a_long_silence_are_correct(engine: Any, text_only: bool) -> None:
    """With windows in sequence; in parallel they have no times."""
    sentence = decode(io.BytesIO(FILE[1]), 60)
    samples = np.concatenate([np.zeros(40 * RATE, np.int16), sentence])
    info, stream = engine.transcribe(samples, Options(language="en", text_only=text_only, words=not text_only))
    segments = list(stream)
    assert info.duration == pytest.approx(len(samples) / RATE)
    assert words("".join(segment.text for segment in segments)) == SPOKEN
    assert [segment.id for segment in segments] == list(range(len(segments)))
    times = [time for segment in segments for word in segment.words for time in (word.start, word.end)]
    assert times == sorted(times)
    assert bool(times) is not text_only
    assert text_only or 39 < times[0] < times[-1] <= info.duration + 0.1


def test_recordings_of_a_batch_keep_their_own_words(engine: Any) -> None:
    """None for silence; with and without a language."""
    sentence = decode(io.BytesIO(FILE[1]), 60)
    second = np.zeros(RATE, np.int16)
    recordings = [sentence, second, np.concatenate([second, sentence // 2, second]), sentence[: len(sentence) // 2]]
    for language in (None, "en"):
        results = engine.transcribe_batch(recordings, Options(language=language, text_only=True))
        texts = [words("".join(segment.text for segment in segments)) for segments in results]
        assert texts[:3] == [SPOKEN, [], SPOKEN]
        assert texts[3][:3] == SPOKEN[:3]
        assert len(texts[3]) < len(SPOKEN)


def test_missing_files_are_reported(tmp_path: Path) -> None:
    """Instead of a download of the tokenizer."""
    (tmp_path / "model.bin").touch()
    with pytest.raises(RuntimeError, match=r"lacks config.json, tokenizer.json"):
        open_engine(tmp_path, load_settings(TranscriptionSettings, device="cpu"), lambda *_: None)


def test_parts_are_transcribed_as_one_recording(engine: Any) -> None:
    """The first part with speech determines the language."""
    engine = WhisperEngine(engine._model, device="cpu", beam_size=5, batch_size=8, part_s=31)
    sentence = decode(io.BytesIO(FILE[1]), 60)
    samples = np.concatenate([np.zeros(25 * RATE, np.int16), sentence, np.zeros(15 * RATE, np.int16), sentence])
    info, stream = engine.transcribe(samples, Options())
    segments = list(stream)
    assert info.duration == pytest.approx(len(samples) / RATE)
    assert words("".join(segment.text for segment in segments)) == SPOKEN * 2
    assert [segment.id for segment in segments] == [0, 1]
    assert segments[0].start == pytest.approx(25, abs=1)
    assert segments[1].start == pytest.approx(40 + len(sentence) / RATE, abs=1)
