"""What an error response says of the backend that sent it, beside the circuit breaker. Pure.

    status                         verdict        source
    401, 402, 407                  MISCONFIGURED  RFC 9110, 15.5: the credentials are the gateway's, never the client's
    301, 302, 303, 307, 308        MISCONFIGURED  no engine redirects a request: its URL in SERVICES is wrong
    403                            FORBIDDEN      of the gateway (its key, ALLOWED_HOSTS), or of one request: a filter's
    425, 429, 529                  FULL           TEI and TGI when overloaded, our own services; Anthropic's 529
    503 with Retry-After           FULL           RFC 9110, 15.6.4
    503 that says it is busy       FULL           vLLM's QueueOverflowError, MaxQueuedTokensError and scaling; SGLang's
                                                  full queue; Ollama's ErrMaxQueue; llama.cpp without a free slot, or
                                                  with "Loading model"
    404 for the model              LACKING        vLLM's NotFoundError, Ollama, llama.cpp; OpenAI's model_not_found
    501                            LACKING        llama.cpp's not_supported_error
    408, 421, 502, 503, 504, 507   ELSEWHERE      RFC 9110, 15.5.9, 15.5.20 and 15.6; RFC 4918, 11.5
    520 to 527, 530                ELSEWHERE      Cloudflare's 502 and 504
    500 of a dead engine           ELSEWHERE      vLLM's EngineDeadError
    424 and every other 5xx        FAULT          a failed inference (TEI's 424): the request may be its cause
    every other status             PASS_ON        about the request

The same statuses are retried by OpenAI's clients (408, 409, 429, 5xx) and by nginx and Envoy (502, 503, 504, 429).
"""

import math
import re
from email.utils import parsedate_to_datetime
from enum import Enum, auto


class ResponseVerdict(Enum):
    """What to do about an error response.

    PASS_ON        the client gets it
    FAULT          the client gets it; it counts towards the circuit breaker
    ELSEWHERE      another backend is tried; it counts towards the circuit breaker
    FULL           another backend is tried; this one is weighed down for its Retry-After
    LACKING        as FULL, for a moment; the backend's models are read again
    MISCONFIGURED  another backend is tried; this one is taken out until a canary succeeds
    FORBIDDEN      as LACKING for the request; as MISCONFIGURED for a probe or a canary

    If no other backend can be tried, the client gets the response, except for the last two.
    """

    PASS_ON = auto()
    FAULT = auto()
    ELSEWHERE = auto()
    FULL = auto()
    LACKING = auto()
    MISCONFIGURED = auto()
    FORBIDDEN = auto()


# Those that may speak of the gateway's credentials: a client would take them for its own.
REJECTIONS = (ResponseVerdict.MISCONFIGURED, ResponseVerdict.FORBIDDEN)
# How long a backend is weighed down if it does not say, and at most, in seconds.
PAUSE_S = 1.0
MAX_PAUSE_S = 60.0
# How much of a body is searched, in bytes: messages come first.
MAX_SEARCHED = 4096

_REDIRECTS = dict.fromkeys((301, 302, 303, 307, 308), ResponseVerdict.MISCONFIGURED)
_VERDICTS: dict[int, ResponseVerdict] = {
    **_REDIRECTS,
    **dict.fromkeys((401, 402, 407), ResponseVerdict.MISCONFIGURED),
    403: ResponseVerdict.FORBIDDEN,
    **dict.fromkeys((425, 429, 529), ResponseVerdict.FULL),
    **dict.fromkeys((408, 421, 502, 503, 504, 507, *range(520, 528), 530), ResponseVerdict.ELSEWHERE),
    424: ResponseVerdict.FAULT,
    501: ResponseVerdict.LACKING,
}
_BUSY = re.compile(
    rb"\bbusy\b|queue is full|backlog limit|overloaded|no slot|pending requests|currently scaling|loading model",
    re.IGNORECASE,
)
_NO_MODEL = re.compile(rb"model_not_found|\bmodel\b.{1,300}?(?:does not exist|not found)", re.IGNORECASE | re.DOTALL)
_ENGINE_DIED = b"EngineCore encountered an issue"
_RETRY_AFTER = re.compile(rb"^retry-after:[ \t]*([^\r\n]*)", re.IGNORECASE | re.MULTILINE)


def verdict_of(status: int, body: bytes = b"", *, names_pause: bool = False) -> ResponseVerdict:
    """Return the verdict on a response. `names_pause` says whether it has a Retry-After."""
    found = _VERDICTS.get(status)
    start = body[:MAX_SEARCHED]
    if status == 503 and (names_pause or _BUSY.search(start)):
        return ResponseVerdict.FULL
    if status == 404 and _NO_MODEL.search(start):
        return ResponseVerdict.LACKING
    if status == 500 and _ENGINE_DIED in start:
        return ResponseVerdict.ELSEWHERE
    if found is not None:
        return found
    return ResponseVerdict.FAULT if status >= 500 else ResponseVerdict.PASS_ON


def retry_after(header_lines: bytes) -> str | None:
    """Return the value of Retry-After among the header lines of a response, None without one."""
    found = _RETRY_AFTER.search(header_lines)
    return None if found is None else found[1].decode("latin-1").strip()


def pause_s(value: str | None, wall: float) -> float:
    """Return for how many seconds a Retry-After weighs a backend down. `wall` is the Unix time.

    RFC 9110, 10.2.3: the value is a number of seconds or a date.
    """
    if value is None:
        return PAUSE_S
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - wall
        except (ValueError, OverflowError):
            return PAUSE_S
    return min(max(seconds, PAUSE_S), MAX_PAUSE_S) if math.isfinite(seconds) else PAUSE_S


def misconfiguration(name: str, status: int, *, has_key: bool) -> str:
    """Return the reason for taking out backend `name`, and the setting to correct."""
    if status in _REDIRECTS:
        return f"it redirects requests (status {status}): correct the URL of {name} in SERVICES of the gateway"
    if status == 403:
        return f"it refuses the gateway (status 403): check {name} in BACKEND_KEYS of the gateway, or its ALLOWED_HOSTS"
    if has_key:
        return f"it rejects the gateway's key (status {status}): correct {name} in BACKEND_KEYS of the gateway"
    return f"it requires a key of the gateway (status {status}): set {name}=KEY in BACKEND_KEYS of the gateway"
