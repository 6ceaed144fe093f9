"""The registry as the source of model files."""

import re
from collections.abc import Mapping

from pydantic_core import from_json

from kit.hub.client import HubClient, HubRequest
from kit.net.http_client import HttpClient
from kit.net.retry import RETRY_POLICY, RetryPolicy, TransientError

CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 15.0
MAX_REASON = 300


class ModelFilesError(Exception):
    """The files are not available. `is_transient`: whether a retry can help."""

    progress: float | None = None
    """The registry's progress in mirroring the model, from 0 to 1."""
    retry_after: float | None = None
    """The delay before a retry, in seconds, that the registry asked for."""

    def __init__(self, message: str, *, is_transient: bool) -> None:
        super().__init__(message)
        self.is_transient = is_transient


class NotMirrored(ModelFilesError):
    """The registry is mirroring the model, or failed to for now."""

    def __init__(self, message: str, *, progress: float | None, retry_after: float | None) -> None:
        super().__init__(message, is_transient=True)
        self.progress = progress
        self.retry_after = retry_after


class RegistryClient(HubClient):
    """Client of the registry. Raises ModelFilesError, TransientError, Cancelled."""

    def __init__(self, url: str, token: str | None, *, model: str, retries: RetryPolicy = RETRY_POLICY) -> None:
        """`model`: its name, for error messages. `retries`: for the content of files."""
        url = url.rstrip("/")
        http = HttpClient(
            url, token, name=f"The registry at {url}", advice="", user_agent="gpu-cluster",
            connect_timeout_s=CONNECT_TIMEOUT_S, read_timeout_s=READ_TIMEOUT_S,
            use_proxies=False,  # the registry is in our own network
        )  # fmt: skip
        # No retries for listings: the service waits for a registry that is down, or that mirrors the model first.
        once = RetryPolicy(max_attempts=1)
        super().__init__(url, http, prefer="respond-async", listing_retries=once, file_retries=retries)
        self._model = model

    def refused(self, request: HubRequest, status: int, headers: Mapping[str, str], body: bytes) -> Exception:
        """Make the exception for an error response."""
        what = request.path or "the list of files"
        error = _error_in(body)
        if status in (401, 403):
            return ModelFilesError(
                f"The registry at {self.endpoint} refuses {what} ({status}). "
                "Set REGISTRY_TOKEN to one of its API_KEYS.",
                is_transient=False,
            )
        if status == 503 and not request.path and error.get("code") in ("model_loading", "model_failed"):
            return NotMirrored(
                str(error.get("message", "The model is not mirrored yet.")),
                progress=_number(headers.get("x-mirror-progress")),
                retry_after=_number(headers.get("retry-after")),
            )
        if status == 429 or status >= 500:
            return TransientError(f"The registry at {self.endpoint} returned {status} for {what}{_reason(error)}")
        if status == 404 and not request.path:
            return ModelFilesError(
                f"{request.repo} at {request.revision} is not in the registry at {self.endpoint}. Mirror it with "
                f"scripts/offline-setup.sh, or POST {self.endpoint}/models/{self._model}/download.",
                is_transient=True,
            )
        return ModelFilesError(
            f"{request.url} returned {status}{_reason(error)} Download the model there again.", is_transient=True
        )

    def invalid_listing(self, request: HubRequest, reason: str) -> Exception:
        """Make the exception for a listing that cannot be used."""
        return ModelFilesError(
            f"{request.url} returned an invalid list of files ({reason}). Is REGISTRY_URL a registry?",
            is_transient=False,
        )


def _reason(error: Mapping[str, object]) -> str:
    """Return the end of a sentence: the error's message in one printable line of limited length, else a full stop."""
    message = error.get("message")
    if not isinstance(message, str) or not message.strip():
        return "."
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in message).split())
    return f": {line}" if len(line) <= MAX_REASON else f": {line[:MAX_REASON]} ..."


def _error_in(body: bytes) -> Mapping[str, object]:
    """Return the error of a body in our envelope, else an empty mapping."""
    try:
        error = from_json(body)["error"]
    except (ValueError, KeyError, TypeError):
        return {}
    return error if isinstance(error, dict) else {}


def _number(value: str | None) -> float | None:
    """Parse a header's decimal number."""
    return float(value) if value and re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", value) else None
