"""A remote file that is read by HTTP ranges, resuming wherever a response breaks off."""

import contextlib
import re
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from urllib.parse import urlsplit

import urllib3
from urllib3.exceptions import HTTPError

from kit.net.http_client import HttpClient
from kit.net.retry import Attempts, RetryPolicy, TransientError, check_stop

CHUNK = 256 << 10
MAX_ERROR_BODY = 4096

ErrorOf = Callable[[int, Mapping[str, str], bytes], Exception]
"""Makes an exception from an error response: status, headers, beginning of the body."""


class RangedFile:
    """One file at one URL. An error response raises what `error_of` returns; TransientError is retried."""

    def __init__(self, http: HttpClient, url: str, error_of: ErrorOf, retries: RetryPolicy) -> None:
        self._http = http
        self._url = url
        self._error_of = error_of
        self._retries = retries
        # The redirect target, used directly until it refuses a request: presigned URLs expire.
        self._direct: str | None = None

    def fill(self, view: memoryview, start: int, stop: threading.Event, on_bytes: Callable[[int], None]) -> None:
        """Fill `view` with the bytes from `start` on, calling `on_bytes` with the length of each chunk.

        Raises what `chunks` raises.
        """
        done = 0
        with contextlib.closing(self.chunks(start, start + len(view), stop)) as chunks:
            for chunk in chunks:
                view[done : done + len(chunk)] = chunk
                done += len(chunk)
                on_bytes(len(chunk))

    def chunks(self, start: int, end: int, stop: threading.Event, *, size: int = CHUNK) -> Generator[memoryview]:
        """Yield the bytes from `start` up to `end` (exclusive) in chunks of at most `size`, resuming broken responses.

        An interruption loses less than one chunk. Raises what `error_of` returns, TransientError when too many attempts
        in a row brought nothing, Cancelled.
        """
        attempts = Attempts(self._retries, stop)
        while start < end:
            before = start
            try:
                with contextlib.closing(self._response(start, end, size)) as response:
                    for view in response:
                        start += len(view)
                        yield view
                        check_stop(stop)
                if start < end:
                    raise TransientError(f"{self._url} ended {end - start} bytes too early.")
            except TransientError as error:
                attempts.backoff(error, progress=start > before)

    def _response(self, start: int, end: int, size: int) -> Generator[memoryview]:
        direct, succeeded = self._direct, False
        try:
            headers = {"Range": f"bytes={start}-{end - 1}"}
            with self._http.get(direct or self._url, headers) as (response, url):
                status = response.status
                if status == 206 and _range_start(response.headers) not in (start, None):
                    raise TransientError(f"{self._url} returned another range than requested.")
                if status not in (200, 206):
                    if direct is not None:
                        raise TransientError(f"{urlsplit(direct).hostname} returned {status}.", retry_after=0.0)
                    raise self._error_of(status, response.headers, _error_body(response))
                succeeded = True
                if url != self._url:
                    self._direct = url
                # A server without support for ranges sends the whole file.
                yield from _body(response, end - start, size, skip=start if status == 200 else 0)
        finally:
            if not succeeded and self._direct == direct:
                self._direct = None


def _body(response: urllib3.BaseHTTPResponse, length: int, size: int, *, skip: int) -> Iterator[memoryview]:
    """Yield `length` bytes of the body after its first `skip`, without copying them."""
    while length and (chunk := response.read(min(size, skip + length))):
        view = memoryview(chunk)[skip:]
        skip = max(skip - len(chunk), 0)
        length -= len(view)
        if view:
            yield view


def _error_body(response: urllib3.BaseHTTPResponse) -> bytes:
    try:
        return response.read(MAX_ERROR_BODY)
    except HTTPError:
        return b""


def _range_start(headers: Mapping[str, str]) -> int | None:
    found = re.match(r"bytes (\d{1,18})-", headers.get("content-range", ""))
    return int(found[1]) if found else None
