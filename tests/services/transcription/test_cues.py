"""Cues of recordings with pauses from 1 to 60 s, with the real Whisper base model: each is where its words are spoken.

The recordings are made of the quickstart's sentence, whole and in two parts, and digital silence.
"""

import re
import wave
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest

from services.transcription.audio import RATE
from services.transcription.whisper import open_engine
from tests.services.fake_service import Start
from tests.services.transcription.recordings import tone, wav
from tests.support import models

pytestmark = pytest.mark.engines

SPEECH = Path(__file__).resolve().parents[3] / "quickstart" / "sentence.wav"
TOLERANCE_S = 1.0
# Samples of the sentence, when its speech begins and ends in them, and its words.
PHRASES = {
    "open": ((0.0, 1.47), (0.04, 1.40), "please open the window"),
    "close": ((1.47, 2.9), (0.07, 1.37), "and close the door"),
    "both": ((0.0, 2.9), (0.04, 2.84), "please open the window and close the door"),
}
# Phrases, and pauses in seconds.
RECORDINGS: dict[str, list[str | float]] = {
    "the case": [2, "close", 20, "open", 20, "both"],
    "pauses of 1 s": ["open", 1, "close", 1, "both"],
    "pauses around 2 s": [1.5, "close", 1.7, "open", 2.6, "both"],
    "speech at both ends": ["both", 5, "close", 10, "open"],
    "pauses of 60 s": [4, "both", 60, "close", 60, "open", 30],
}


@dataclass(frozen=True)
class Phrase:
    """A phrase of a recording: when its speech begins and ends, in seconds, and its words."""

    start: float
    end: float
    words: Sequence[str]


@dataclass(frozen=True)
class Cue:
    start: float
    end: float
    text: str


def build(parts: Sequence[str | float]) -> tuple[bytes, list[Phrase]]:
    """Return a WAV file of phrases and pauses, and where each phrase is in it."""
    with wave.open(str(SPEECH)) as reader:
        sentence = np.frombuffer(reader.readframes(reader.getnframes()), np.int16)
    pieces, phrases, position = [], [], 0.0
    for part in parts:
        if isinstance(part, str):
            (begin, stop), (start, end), text = PHRASES[part]
            pieces.append(sentence[int(begin * RATE) : int(stop * RATE)])
            phrases.append(Phrase(position + start, position + end, text.split()))
        else:
            pieces.append(np.zeros(int(part * RATE), np.int16))
        position += len(pieces[-1]) / RATE
    return wav(np.concatenate(pieces)), phrases


def words(text: str) -> list[str]:
    return re.findall(r"[a-z']+", text.lower())


def parse_subtitles(text: str) -> list[Cue]:
    """Parse SubRip or WebVTT."""
    time = r"(\d+):(\d\d):(\d\d)[,.](\d{3})"
    cues = []
    for match in re.finditer(rf"^{time} --> {time}\n(.*)$", text, re.MULTILINE):
        *times, shown = match.groups()
        start, end = (int(h) * 3600 + int(m) * 60 + int(s) + int(ms) / 1000 for h, m, s, ms in (times[:4], times[4:]))
        cues.append(Cue(start, end, shown))
    return cues


def check(cues: Sequence[Cue], phrases: Sequence[Phrase]) -> None:
    """Assert that the cues have every word once and in order, and that each is within TOLERANCE_S of its speech."""
    spoken = [(word, phrase) for phrase in phrases for word in phrase.words]
    assert words(" ".join(cue.text for cue in cues)) == [word for word, _ in spoken]
    position, previous_end = 0, 0.0
    for cue in cues:
        shown = [phrase for _, phrase in spoken[position : position + len(words(cue.text))]]
        position += len(shown)
        assert shown[0].start - TOLERANCE_S <= cue.start < cue.end <= shown[-1].end + TOLERANCE_S, cue
        assert previous_end <= cue.start < shown[0].end, cue
        assert all(after.start - before.end <= 2 * TOLERANCE_S for before, after in pairwise(shown))
        previous_end = cue.end


@pytest.fixture(scope="module")
def client(module_start: Start) -> Iterator[httpx2.Client]:
    with module_start(None, open_engine=open_engine, model_dir=models.folder("whisper"), cpu_threads=1) as client:
        yield client


@pytest.fixture(scope="module", params=RECORDINGS)
def recording(request: pytest.FixtureRequest) -> tuple[bytes, list[Phrase]]:
    return build(RECORDINGS[request.param])


def transcribe(client: httpx2.Client, file: bytes, route: str = "transcriptions", **fields: Any) -> httpx2.Response:
    answer = client.post(f"/v1/audio/{route}", files={"file": ("a.wav", file)}, data={"language": "en"} | fields)
    assert answer.status_code == 200, answer.text
    return answer


def test_subtitles_are_shown_while_they_are_spoken(
    client: httpx2.Client, recording: tuple[bytes, list[Phrase]]
) -> None:
    file, phrases = recording
    check(parse_subtitles(transcribe(client, file, response_format="srt").text), phrases)


def test_segments_and_words_have_the_times_of_their_speech(
    client: httpx2.Client, recording: tuple[bytes, list[Phrase]]
) -> None:
    """They lie in the recording, and words in their segment."""
    file, phrases = recording
    granularities: dict[str, Any] = {"timestamp_granularities[]": ["segment", "word"]}
    body = transcribe(client, file, response_format="verbose_json", **granularities).json()
    assert words(body["text"]) == [word for phrase in phrases for word in phrase.words]
    segments = [Cue(segment["start"], segment["end"], segment["text"]) for segment in body["segments"]]
    shown = [Cue(word["start"], word["end"], word["word"]) for word in body["words"]]
    for cues in (segments, shown):
        check(cues, phrases)
        assert cues[-1].end <= body["duration"]
    assert all(any(cue.start <= word.start and word.end <= cue.end for cue in segments) for word in shown)


def test_segments_without_words_have_the_times_of_their_speech(client: httpx2.Client) -> None:
    """In verbose_json without granularities, and in WebVTT."""
    file, phrases = build(RECORDINGS["the case"])
    check(parse_subtitles(transcribe(client, file, response_format="vtt").text), phrases)
    body = transcribe(client, file, response_format="verbose_json").json()
    check([Cue(segment["start"], segment["end"], segment["text"]) for segment in body["segments"]], phrases)
    assert "words" not in body
    assert all(segment["tokens"] for segment in body["segments"])


def test_translations_have_the_times_of_the_speech(client: httpx2.Client) -> None:
    file, phrases = build(RECORDINGS["the case"])
    check(parse_subtitles(transcribe(client, file, "translations", response_format="srt").text), phrases)


def test_recordings_without_speech_have_no_cue(client: httpx2.Client) -> None:
    noise = (np.random.default_rng(0).standard_normal(5 * RATE) * 1000).astype(np.int16)
    for samples in (np.zeros(5 * RATE, np.int16), noise, tone(5.0)):
        assert parse_subtitles(transcribe(client, wav(samples), response_format="srt").text) == []
