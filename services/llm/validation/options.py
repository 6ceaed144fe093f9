"""Validation of the generation options that OpenAI's text routes share.

Ranges and meanings: https://platform.openai.com/docs/api-reference/chat/create; `top_k`, `min_p`, `min_tokens`,
`repetition_penalty` and `ignore_eos` are vLLM's additions, with vLLM's names.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kit.errors import InvalidRequest

MAX_STOPS = 16
MAX_STOP_LENGTH = 1000
MAX_SEED = 2**63 - 1
_TOKEN = re.compile(r"[0-9]{1,9}")


@dataclass(frozen=True)
class Sampling:
    """Sampling options. The defaults have no effect; `temperature` 0 is greedy."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    min_tokens: int = 0


@dataclass(frozen=True)
class Options:
    """Generation options of one request. `max_tokens` None means the service's limit."""

    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False


def read_options(body: Mapping[str, Any], defaults: Sampling, *limit_fields: str) -> Options:
    """Read the options of a request. The first of `limit_fields` that is set is its token limit.

    Raises InvalidRequest that names the field, its value and the valid values.
    """
    sampling = Sampling(
        temperature=number(body, "temperature", 0, 2, defaults.temperature),
        top_p=number(body, "top_p", 0, 1, defaults.top_p),
        top_k=max(0, integer(body, "top_k", -1, 2**31, defaults.top_k)),
        min_p=number(body, "min_p", 0, 1, defaults.min_p),
        repetition_penalty=number(body, "repetition_penalty", 0.01, 10, defaults.repetition_penalty),
        presence_penalty=number(body, "presence_penalty", -2, 2, 0.0),
        frequency_penalty=number(body, "frequency_penalty", -2, 2, 0.0),
        logit_bias=_logit_bias(body.get("logit_bias")),
        seed=None if body.get("seed") is None else integer(body, "seed", -MAX_SEED, MAX_SEED, 0),
        min_tokens=integer(body, "min_tokens", 0, 2**31, 0),
    )
    max_tokens = None
    for name in limit_fields:
        if max_tokens is None and body.get(name) is not None:
            max_tokens = integer(body, name, 1, 2**31, 1)
    return Options(sampling, max_tokens, read_stop(body.get("stop")), flag(body, "ignore_eos"))


def number(body: Mapping[str, Any], name: str, low: float, high: float, default: float) -> float:
    """Return the number `name` of `body`, or the default if it is absent or null. Raises InvalidRequest."""
    value = body.get(name)
    if value is None:
        return default
    # NaN fails the comparison.
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise InvalidRequest(f"{name} must be a number from {low} to {high}, not {shown(value)}.", param=name)
    return float(value)


def integer(body: Mapping[str, Any], name: str, low: int, high: int, default: int) -> int:
    """Return the integer `name` of `body`, or the default if it is absent or null. Raises InvalidRequest."""
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise InvalidRequest(f"{name} must be an integer from {low} to {high}, not {shown(value)}.", param=name)
    return value


def flag(body: Mapping[str, Any], name: str, default: bool = False) -> bool:
    """Return the boolean `name` of `body`, or the default if it is absent or null. Raises InvalidRequest."""
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise InvalidRequest(f"{name} must be true or false, not {shown(value)}.", param=name)
    return value


def read_stop(value: object) -> tuple[str, ...]:
    """Return the stop strings: none, one, or a list."""
    if value is None:
        return ()
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or len(stops) > MAX_STOPS:
        raise InvalidRequest(f"stop must be a string or a list of at most {MAX_STOPS} strings.", param="stop")
    for stop in stops:
        if not isinstance(stop, str) or not 0 < len(stop) <= MAX_STOP_LENGTH:
            raise InvalidRequest(
                f"stop must contain strings of 1 to {MAX_STOP_LENGTH} characters, not {shown(stop)}.", param="stop"
            )
    return tuple(stops)


def shown(value: object) -> str:
    """Return an invalid value for an error message, shortened."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _logit_bias(value: object) -> dict[int, float]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InvalidRequest("logit_bias must map token ids to numbers from -100 to 100.", param="logit_bias")
    bias: dict[int, float] = {}
    for key, amount in value.items():
        good = isinstance(amount, int | float) and not isinstance(amount, bool) and -100 <= amount <= 100
        if not _TOKEN.fullmatch(str(key)) or not good:
            raise InvalidRequest(
                f"logit_bias must map token ids to numbers from -100 to 100, not {shown(key)} to {shown(amount)}.",
                param="logit_bias",
            )
        bias[int(key)] = float(amount)
    return bias
