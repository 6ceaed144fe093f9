"""The form that clients fill in for a transcription, checked field by field.

Fields and rules: https://platform.openai.com/docs/api-reference/audio/createTranscription. `vad_filter` is ours.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar, get_args

from starlette.datastructures import FormData, UploadFile

from kit.errors import InvalidRequest
from services.transcription.engine import Options, SpeechEngine, Task
from services.transcription.languages import code_of
from services.transcription.response_formats import Format, Granularity

STREAMABLE = ("json", "text")
# Answers that tell nothing of when something was said.
COARSE = ("json", "text")
TRUE = frozenset({"true", "1", "yes", "on"})
FALSE = frozenset({"false", "0", "no", "off", ""})


@dataclass(frozen=True)
class Wish:
    """A checked form, its file apart."""

    options: Options
    format: Format
    granularities: Sequence[Granularity]
    stream: bool


def file_of(form: FormData) -> UploadFile:
    """The uploaded file. Raises InvalidRequest when there is none, or several."""
    files = form.getlist("file")
    if len(files) != 1:
        raise InvalidRequest(
            f"The form has {len(files)} fields named file. Send one: multipart/form-data with file=@recording.wav.",
            param="file",
        )
    file = files[0]
    if not isinstance(file, UploadFile):
        raise InvalidRequest("file is text, not a file. Send it as a file part, with a file name.", param="file")
    if not file.size:
        raise InvalidRequest("The file is empty. Send a recording.", param="file", code="invalid_audio")
    return file


def model_of(form: FormData) -> str | None:
    """The name in `model`, or None."""
    return _last(form, "model") or None


def wish_of(form: FormData, task: Task, engine: SpeechEngine, *, vad_filter: bool) -> Wish:
    """Check everything but the file and the model. `vad_filter` is the service's default.

    Raises InvalidRequest that names the field, what it got and what it takes.
    """
    format_: Format = _one_of("response_format", _last(form, "response_format") or "json", get_args(Format))
    asked = [*form.getlist("timestamp_granularities[]"), *form.getlist("timestamp_granularities")]
    granularities: list[Granularity] = [
        _one_of("timestamp_granularities", str(value), get_args(Granularity)) for value in asked
    ]
    if granularities and format_ != "verbose_json":
        raise InvalidRequest(
            f"timestamp_granularities needs response_format=verbose_json, not {format_}.",
            param="timestamp_granularities",
        )
    stream = _flag(form, "stream", default=False)
    if stream and format_ not in STREAMABLE:
        raise InvalidRequest(
            f"stream=true gives text only; send response_format=json or text with it, not {format_}.", param="stream"
        )
    if task == "translate":
        refuse_translation(engine)
    language = _last(form, "language")
    options = Options(
        task=task,
        language=code_of(language, engine.languages) if language else None,
        prompt=_last(form, "prompt") or None,
        temperature=_temperature(_last(form, "temperature")),
        words="word" in granularities,
        vad=_flag(form, "vad_filter", default=vad_filter),
        coarse=not stream and format_ in COARSE,
    )
    return Wish(options, format_, granularities, stream)


def refuse_translation(engine: SpeechEngine) -> None:
    """Raise InvalidRequest when the engine is English-only, and so cannot translate into English."""
    if list(engine.languages) == ["en"]:
        raise InvalidRequest("This model hears English only and cannot translate. Use /v1/audio/transcriptions.")


def _temperature(value: str | None) -> float:
    if not value:
        return 0.0
    try:
        temperature = float(value)
    except ValueError:
        temperature = math.nan
    if not 0 <= temperature <= 1:
        raise InvalidRequest(f"temperature is {value!r:.40}; it takes a number from 0 to 1.", param="temperature")
    return temperature


def _flag(form: FormData, name: str, *, default: bool) -> bool:
    value = _last(form, name)
    if value is None:
        return default
    word = value.strip().lower()
    if word not in TRUE | FALSE:
        raise InvalidRequest(f"{name} is {value!r:.40}; it takes true or false.", param=name)
    return word in TRUE


V = TypeVar("V", bound=str)


def _one_of(name: str, value: str, allowed: Sequence[V]) -> V:
    for choice in allowed:
        if value == choice:
            return choice
    raise InvalidRequest(f"{name} is {value!r:.40}; it takes {', '.join(allowed)}.", param=name)


def _last(form: FormData, name: str) -> str | None:
    """The last value of a text field. Raises InvalidRequest when a file was sent in its place."""
    value = form.get(name)
    if value is not None and not isinstance(value, str):
        raise InvalidRequest(f"{name} is a file; it takes text.", param=name)
    return value
