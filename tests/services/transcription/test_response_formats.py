"""The five response formats, and the events of a streamed response."""

import json
from typing import Any

import pytest

from services.transcription import response_formats
from services.transcription.engine import Info, Segment, Word

INFO = Info("de", 7261.25)
SEGMENTS = [
    Segment(
        0,
        0,
        0.0,
        1.5,
        " Guten Tag.",
        tokens=[1, 2],
        avg_logprob=-0.25,
        words=[Word(" Guten", 0.0, 0.5, 0.9), Word(" Tag.", 0.5, 1.5, 0.8)],
    ),
    Segment(1, 3000, 3599.9996, 7261.0, " A < B --> C & so on", words=[Word(" A", 3600.0, 3601.0, 0.7)]),
]


def test_json_has_text_and_usage() -> None:
    assert response_formats.json_body(INFO, SEGMENTS) == {
        "text": "Guten Tag. A < B --> C & so on",
        "usage": {"type": "duration", "seconds": 7262},
    }


def test_every_format_supports_silence() -> None:
    assert response_formats.json_body(INFO, [])["text"] == ""
    assert response_formats.srt([]) == ""
    assert response_formats.vtt([]) == "WEBVTT\n"
    assert (
        response_formats.verbose_json_body(INFO, [], task="transcribe", granularities=["word", "segment"])["words"]
        == []
    )


def test_srt() -> None:
    """SubRip: numbers, commas, hours; an arrow in the text begins no cue."""
    assert response_formats.srt(SEGMENTS) == (
        "1\n00:00:00,000 --> 00:00:01,500\nGuten Tag.\n\n2\n01:00:00,000 --> 02:01:01,000\nA < B -> C & so on\n"
    )


def test_vtt() -> None:
    """WebVTT: header, full stops, and no tag or entity from the text."""
    assert response_formats.vtt(SEGMENTS) == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.500\nGuten Tag.\n\n"
        "01:00:00.000 --> 02:01:01.000\nA &lt; B -&gt; C &amp; so on\n"
    )


def test_hours_may_have_three_digits() -> None:
    assert "100:00:00.000 --> " in response_formats.vtt([Segment(0, 0, 360_000.0, 360_001.0, "late")])


@pytest.mark.parametrize(
    ("granularities", "segments", "words"),
    [([], True, False), (["segment"], True, False), (["word"], False, True), (["word", "segment"], True, True)],
)
def test_verbose_json_has_requested_granularities(
    granularities: list[response_formats.Granularity], segments: bool, words: bool
) -> None:
    body = response_formats.verbose_json_body(INFO, SEGMENTS, task="transcribe", granularities=granularities)
    assert (body["task"], body["language"], body["duration"]) == ("transcribe", "german", 7261.25)
    assert ("segments" in body, "words" in body) == (segments, words)
    if words:
        assert body["words"][:2] == [
            {"word": "Guten", "start": 0.0, "end": 0.5},
            {"word": "Tag.", "start": 0.5, "end": 1.5},
        ]
    if segments:
        assert body["segments"][0]["text"] == " Guten Tag."
        assert body["segments"][0]["avg_logprob"] == -0.25


@pytest.mark.parametrize(("code", "name"), [("yue", "cantonese"), ("new", "new")])
def test_codes_of_newer_models_are_returned_as_they_are(code: str, name: str) -> None:
    body = response_formats.verbose_json_body(Info(code, 1.0), [], task="transcribe", granularities=[])
    assert body["language"] == name


def test_language_of_a_translation_is_english() -> None:
    assert response_formats.verbose_json_body(INFO, [], task="translate", granularities=[])["language"] == "english"


@pytest.mark.parametrize("body", [{"type": "transcript.text.delta", "delta": "ö\nals"}, {"error": {"message": "no"}}])
def test_event_is_one_json_object_in_one_data_line(body: dict[str, Any]) -> None:
    event = response_formats.event(body)
    assert event.endswith(b"\n\n")
    assert event.count(b"\n") == 2
    assert json.loads(event.removeprefix(b"data: ")) == body
