"""Validation of the multipart form of a transcription request.

Source: https://platform.openai.com/docs/api-reference/audio/createTranscription. `vad_filter` is our addition.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar, get_args

from starlette.datastructures import FormData, UploadFile

from kit.errors import InvalidRequest
from services.transcription.engine import Options, SpeechEngine, Task
from services.transcription.languages import language_code
from services.transcription.response_formats import Format, Granularity

# Formats without timestamps, which can be streamed.
TEXT_ONLY_FORMATS = ("json", "text")
TRUE = frozenset({"true", "1", "yes", "on"})
FALSE = frozenset({"false", "0", "no", "off"})


@dataclass(frozen=True)
class TranscriptionRequest:
    """Validated fields of a form, without the file."""

    options: Options
    format: Format
    granularities: Sequence[Granularity]
    stream: bool


def uploaded_file(form: FormData) -> UploadFile:
    """Return the uploaded file. Raises InvalidRequest unless there is exactly one."""
    files = form.getlist("file")
    if len(files) != 1:
        raise InvalidRequest(
            f"The form has {len(files)} fields named file; exactly one is required. Send multipart/form-data, "
            "for example with curl -F file=@recording.wav.",
            param="file",
        )
    file = files[0]
    if not isinstance(file, UploadFile):
        raise InvalidRequest("file is a text field. Send it as a file part, with a file name.", param="file")
    if not file.size:
        raise InvalidRequest("The file is empty.", param="file", code="invalid_audio")
    return file


def model_name(form: FormData) -> str | None:
    """Return the field `model`, or None."""
    return _last(form, "model")


def read_request(form: FormData, task: Task, engine: SpeechEngine, *, vad_filter: bool) -> TranscriptionRequest:
    """Validate all fields except file and model. `vad_filter` is the service's default.

    Raises InvalidRequest that names the field, its value and the valid values.
    """
    format_: Format = _one_of("response_format", _last(form, "response_format") or "json", get_args(Format))
    granularities: list[Granularity] = [
        _one_of("timestamp_granularities", value, get_args(Granularity))
        for value in _list(form, "timestamp_granularities")
    ]
    if granularities and format_ != "verbose_json":
        raise InvalidRequest(
            f"timestamp_granularities needs response_format=verbose_json, not {format_}.",
            param="timestamp_granularities",
        )
    included = _list(form, "include")
    if included:
        raise InvalidRequest(
            f"include is {included[0]!r:.40}, which Whisper models do not have. Omit it; the segments of "
            "response_format=verbose_json have avg_logprob.",
            param="include",
        )
    stream = _flag(form, "stream", default=False)
    if stream and format_ not in TEXT_ONLY_FORMATS:
        raise InvalidRequest(f"stream=true needs response_format=json or text, not {format_}.", param="stream")
    if task == "translate" and list(engine.languages) == ["en"]:
        raise InvalidRequest("This model supports English only and cannot translate. Use /v1/audio/transcriptions.")
    language = _last(form, "language")
    options = Options(
        task=task,
        language=language_code(language, engine.languages) if language else None,
        prompt=_last(form, "prompt"),
        temperature=_temperature(_last(form, "temperature")),
        words="word" in granularities,
        vad=_flag(form, "vad_filter", default=vad_filter),
        text_only=format_ in TEXT_ONLY_FORMATS,
        streamed=stream,
    )
    return TranscriptionRequest(options, format_, granularities, stream)


def _temperature(value: str | None) -> float:
    if value is None:
        return 0.0
    try:
        temperature = float(value)
    except ValueError:
        temperature = math.nan
    if not 0 <= temperature <= 1:
        raise InvalidRequest(f"temperature is {value!r:.40}; it must be a number from 0 to 1.", param="temperature")
    return temperature


def _flag(form: FormData, name: str, *, default: bool) -> bool:
    value = _last(form, name)
    if value is None:
        return default
    word = value.strip().lower()
    if word not in TRUE | FALSE:
        raise InvalidRequest(f"{name} is {value!r:.40}; it must be true or false.", param=name)
    return word in TRUE


V = TypeVar("V", bound=str)


def _one_of(name: str, value: str, allowed: Sequence[V]) -> V:
    for choice in allowed:
        if value == choice:
            return choice
    raise InvalidRequest(f"{name} is {value!r:.40}; it must be one of {', '.join(allowed)}.", param=name)


def _last(form: FormData, name: str) -> str | None:
    """Return the last value of a text field; None if absent, or empty, as forms send null.

    Raises InvalidRequest if it is a file.
    """
    return _as_text(name, form.get(name)) or None


def _list(form: FormData, name: str) -> list[str]:
    """Return the values of a list: `name`, `name[]` or `name[0]`, repeated, comma-separated or a JSON array.

    OpenAI's clients send `name[]`, others each of these. Raises InvalidRequest if one is a file.
    """
    found = [
        _as_text(name, value)
        for key, value in form.multi_items()
        if key == name or (key.startswith(f"{name}[") and key.endswith("]"))
    ]
    items = (item.strip(" \t\r\n\"'") for value in found for item in value.strip().strip("[]").split(","))
    return [item for item in items if item]


def _as_text(name: str, value: UploadFile | str | None) -> str:
    if value is not None and not isinstance(value, str):
        raise InvalidRequest(f"{name} is a file; it must be text.", param=name)
    return value or ""
