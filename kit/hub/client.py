"""Client of the Hub API of huggingface.co, its mirrors and the registry. Blocking, safe for many threads."""

import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Self
from urllib.parse import quote

from pydantic_core import from_json

from kit.hub.listing import MAX_FILES, Listing, parse_listing
from kit.net.http_client import HttpClient
from kit.net.ranged_file import MAX_ERROR_BODY, RangedFile
from kit.net.retry import RetryPolicy, check_stop, retry

# MAX_FILES entries take about 25 MB.
MAX_LISTING_BYTES = 32 << 20
# They have 9 values each. Parsed, an empty list takes thirty times the memory of its two bytes.
MAX_LISTING_VALUES = 20 * MAX_FILES
CHUNK = 64 << 10


@dataclass(frozen=True)
class HubRequest:
    """A request, for its error message. `path` is empty for a listing."""

    url: str
    repo: str
    revision: str
    path: str = ""


class HubClient(ABC):
    """One endpoint. A context manager: closes its connections. Subclasses define the errors."""

    def __init__(
        self, endpoint: str, http: HttpClient, *, prefer: str, listing_retries: RetryPolicy, file_retries: RetryPolicy
    ) -> None:
        """`prefer`: the header of listing requests (RFC 7240), for a registry that has to mirror the model first."""
        self.endpoint = endpoint
        self._http = http
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

    def abort(self) -> None:
        """End the responses that other threads are reading, for a download that is stopped."""
        self._http.abort()

    @abstractmethod
    def refused(self, request: HubRequest, status: int, headers: Mapping[str, str], body: bytes) -> Exception:
        """Make the exception for an error response; TransientError is retried."""

    @abstractmethod
    def invalid_listing(self, request: HubRequest, reason: str) -> Exception:
        """Make the exception for a listing that cannot be used."""

    def listing(self, repo: str, revision: str, stop: threading.Event) -> Listing:
        """Resolve `revision` to a commit and list its files.

        Raises TransientError, Cancelled, and what `refused` and `invalid_listing` return.
        """
        url = f"{self.endpoint}/api/models/{repo}/revision/{quote(revision, safe='')}?blobs=true"
        request = HubRequest(url, repo, revision)
        body = retry(lambda: self._get(request, stop), self._listing_retries, stop)
        try:
            return parse_listing(from_json(body))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise self.invalid_listing(request, f"{type(error).__name__}: {error}") from error

    def file(self, repo: str, commit: str, path: str) -> RangedFile:
        """Return a file to read by ranges; reading raises TransientError, Cancelled, and what `refused` returns."""
        url = f"{self.endpoint}/{repo}/resolve/{commit}/{quote(path)}"
        error_of = partial(self.refused, HubRequest(url, repo, commit, path))
        return RangedFile(self._http, url, error_of, self._file_retries)

    def _get(self, request: HubRequest, stop: threading.Event) -> bytes:
        with self._http.get(request.url, {"Prefer": self._prefer}) as (response, _):
            if response.status != 200:
                raise self.refused(request, response.status, response.headers, response.read(MAX_ERROR_BODY))
            body = bytearray()
            # `read1` returns what has arrived: a source that sends a byte a minute can be cancelled.
            while chunk := response.read1(CHUNK):
                check_stop(stop)
                body += chunk
                if len(body) > MAX_LISTING_BYTES:
                    raise self.invalid_listing(request, f"more than {MAX_LISTING_BYTES} bytes")
            if sum(body.count(mark) for mark in b",[{") > MAX_LISTING_VALUES:
                raise self.invalid_listing(request, f"more than {MAX_LISTING_VALUES} values")
            return bytes(body)
