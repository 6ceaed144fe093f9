"""Client of the Hub API, as huggingface.co, its mirrors and the registry serve it. Blocking, safe for many threads."""

import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Protocol, Self
from urllib.parse import quote

from kit.hub.listing import Listing, parse_listing
from kit.net.http_client import HttpClient
from kit.net.ranged_file import MAX_ERROR_BODY, RangedFile
from kit.net.retry import RETRY_POLICY, RetryPolicy, retry

MAX_LISTING_BYTES = 64 << 20
CHUNK = 64 << 10


@dataclass(frozen=True)
class HubRequest:
    """A request, for its error message. `path` is empty for a listing."""

    url: str
    repo: str
    revision: str
    path: str = ""


class HubErrors(Protocol):
    """The exceptions that a client raises."""

    def refused(self, request: HubRequest, status: int, headers: Mapping[str, str], body: bytes) -> Exception:
        """Make an exception from an error response; TransientError is retried."""
        ...

    def invalid_listing(self, request: HubRequest, reason: str) -> Exception:
        """Make an exception for a listing that cannot be used."""
        ...


class HubClient:
    """One endpoint. A context manager: closes its connections."""

    def __init__(
        self, endpoint: str, http: HttpClient, errors: HubErrors,
        *, prefer: str, listing_retries: RetryPolicy = RETRY_POLICY, file_retries: RetryPolicy = RETRY_POLICY,
    ) -> None:  # fmt: skip
        """`prefer`: the header of listing requests (RFC 7240), for a registry that has to mirror the model first."""
        self.endpoint = endpoint.rstrip("/")
        self._http = http
        self._errors = errors
        self._prefer = prefer
        self._listing_retries = listing_retries
        self._file_retries = file_retries

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def listing(self, repo: str, revision: str, stop: threading.Event) -> Listing:
        """Resolve `revision` to a commit and list its files.

        Raises TransientError, Cancelled, and what `errors` makes.
        """
        url = f"{self.endpoint}/api/models/{repo}/revision/{quote(revision, safe='')}?blobs=1"
        request = HubRequest(url, repo, revision)
        body = retry(lambda: self._get(request), self._listing_retries, stop)
        try:
            return parse_listing(json.loads(body))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise self._errors.invalid_listing(request, f"{type(error).__name__}: {error}") from error

    def file(self, repo: str, commit: str, path: str) -> RangedFile:
        """Return a file to read by ranges; reading raises TransientError, Cancelled, and what `errors` makes."""
        url = f"{self.endpoint}/{repo}/resolve/{commit}/{quote(path)}"
        error_of = partial(self._errors.refused, HubRequest(url, repo, commit, path))
        return RangedFile(self._http, url, error_of, self._file_retries)

    def _get(self, request: HubRequest) -> bytes:
        with self._http.get(request.url, {"Prefer": self._prefer}) as (response, _):
            if response.status != 200:
                raise self._errors.refused(request, response.status, response.headers, response.read(MAX_ERROR_BODY))
            body = bytearray()
            while chunk := response.read(CHUNK):
                body += chunk
                if len(body) > MAX_LISTING_BYTES:
                    raise self._errors.invalid_listing(request, f"more than {MAX_LISTING_BYTES} bytes")
            return bytes(body)
