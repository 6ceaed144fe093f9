"""The five response formats, and the events of a streamed response. No I/O.

Sources: https://platform.openai.com/docs/api-reference/audio, SubRip (.srt) as read by players, and
https://www.w3.org/TR/webvtt1/.
"""

import json
import math
from collections.abc import Sequence
from typing import Any, Literal

from services.transcription.engine import Info, Segment, Task
from services.transcription.languages import NAMES

Format = Literal["json", "text", "srt", "vtt", "verbose_json"]
Granularity = Literal["word", "segment"]


def full_text(segments: Sequence[Segment]) -> str:
    """Return the text of all segments."""
    return "".join(segment.text for segment in segments).strip()


def json_body(info: Info, segments: Sequence[Segment]) -> dict[str, Any]:
    """Return the body of `json`."""
    return {"text": full_text(segments), "usage": _usage(info)}


def verbose_json_body(
    info: Info, segments: Sequence[Segment], *, task: Task, granularities: Sequence[Granularity]
) -> dict[str, Any]:
    """Return the body of `verbose_json`, with segments, words or both; segments if `granularities` is empty."""
    body: dict[str, Any] = {
        "task": task,
        "language": "english" if task == "translate" else NAMES.get(info.language, info.language),
        "duration": round(info.duration, 3),
        "text": full_text(segments),
        "usage": _usage(info),
    }
    if "segment" in granularities or not granularities:
        body["segments"] = [_segment(segment) for segment in segments]
    if "word" in granularities:
        body["words"] = [
            {"word": word.text.strip(), "start": round(word.start, 3), "end": round(word.end, 3)}
            for segment in segments
            for word in segment.words
        ]
    return body


def srt(segments: Sequence[Segment]) -> str:
    """Return SubRip subtitles; an empty file for silence."""
    blocks = [
        f"{number}\n{_timestamp(segment.start, ',')} --> {_timestamp(segment.end, ',')}\n{_cue(segment.text)}\n"
        for number, segment in enumerate(segments, 1)
    ]
    return "\n".join(blocks)


def vtt(segments: Sequence[Segment]) -> str:
    """Return WebVTT subtitles."""
    blocks = ["WEBVTT\n"]
    for segment in segments:
        text = _cue(segment.text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        blocks.append(f"{_timestamp(segment.start, '.')} --> {_timestamp(segment.end, '.')}\n{text}\n")
    return "\n".join(blocks)


def event(body: dict[str, Any]) -> bytes:
    """Return an event of a stream."""
    return b"data: " + json.dumps(body, ensure_ascii=False).encode() + b"\n\n"


def _segment(segment: Segment) -> dict[str, Any]:
    return {
        "id": segment.id,
        "seek": segment.seek,
        "start": round(segment.start, 3),
        "end": round(segment.end, 3),
        "text": segment.text,
        "tokens": list(segment.tokens),
        "temperature": segment.temperature,
        "avg_logprob": segment.avg_logprob,
        "compression_ratio": segment.compression_ratio,
        "no_speech_prob": segment.no_speech_prob,
    }


def _usage(info: Info) -> dict[str, Any]:
    return {"type": "duration", "seconds": math.ceil(info.duration)}


def _timestamp(seconds: float, decimal: str) -> str:
    """`HH:MM:SS,mmm`; hours grow beyond two digits."""
    milliseconds = round(max(seconds, 0.0) * 1000)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{milliseconds // 1000:02}{decimal}{milliseconds % 1000:03}"


def _cue(text: str) -> str:
    """Return a cue's text: an empty line would end the cue, and `-->` would start another."""
    return " ".join(text.split()).replace("-->", "->")
