"""A Hub as the source of models: huggingface.co, a mirror of it, or another registry."""

from collections.abc import Mapping

from kit.hub.client import HubClient, HubRequest
from kit.net.http_client import HttpClient
from kit.net.retry import RETRY_POLICY, RetryPolicy, TransientError

CONNECT_TIMEOUT_S = 10.0


class HubError(Exception):
    """The source refused a request, or sent something unusable; the message says why and what to do."""


class SourceHub(HubClient):
    """Client of HF_ENDPOINT. Raises HubError, TransientError, Cancelled."""

    def __init__(self, endpoint: str, token: str | None, *, file_retries: RetryPolicy, read_timeout_s: float) -> None:
        """`file_retries` may be more than for listings: downloads take days, a listing should fail within seconds."""
        endpoint = endpoint.rstrip("/")
        http = HttpClient(
            endpoint, token, name=endpoint, advice="Check the connection to it, or HF_ENDPOINT.",
            user_agent="gpu-cluster-registry", connect_timeout_s=CONNECT_TIMEOUT_S, read_timeout_s=read_timeout_s,
            use_proxies=True,
        )  # fmt: skip
        # Another registry may have to mirror the model first: parts are requested in any order, so wait for all of it.
        super().__init__(endpoint, http, prefer="wait=86400", listing_retries=RETRY_POLICY, file_retries=file_retries)
        self._has_token = token is not None

    def refused(self, request: HubRequest, status: int, headers: Mapping[str, str], _body: bytes) -> Exception:
        """Make the exception for an error response."""
        repo, endpoint, code = request.repo, self.endpoint, headers.get("x-error-code", "")
        what = f"{request.path} of {repo}" if request.path else repo
        if status == 429 or status >= 500:
            seconds = headers.get("retry-after", "")  # or a date, which is ignored
            retry_after = float(seconds) if seconds.isascii() and seconds.isdigit() else None
            return TransientError(f"{endpoint} returned {status} for {what}.", retry_after=retry_after)
        if code == "GatedRepo" or status == 403:
            step = "use a token whose account has accepted it" if self._has_token else "set HF_TOKEN"
            return HubError(f"{repo} is gated: accept its licence at {endpoint}/{repo} and {step}.")
        if code == "RevisionNotFound":
            return HubError(
                f"{repo} has no revision {request.revision!r} at {endpoint}. Use one of its branches, tags or commits."
            )
        if status == 416:
            return HubError(f"{what} is shorter at {endpoint} than its listing says. Try again later.")
        if code == "EntryNotFound":
            return HubError(f"{what} is not at {endpoint} any more. Download the model again.")
        if status in (401, 404):
            step = "Check the name, and HF_TOKEN's rights." if self._has_token else "Check the name, or set HF_TOKEN."
            return HubError(f"{repo} does not exist at {endpoint}, or is private ({status}). {step}")
        return HubError(f"{endpoint} returned {status} for {what}. Check HF_ENDPOINT.")

    def invalid_listing(self, request: HubRequest, reason: str) -> Exception:
        """Make the exception for a listing that cannot be used."""
        return HubError(
            f"{self.endpoint} returned an invalid listing of {request.repo} ({reason}). Is HF_ENDPOINT a Hub?"
        )
