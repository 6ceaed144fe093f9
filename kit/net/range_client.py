"""Files over HTTP by ranges: many gigabytes at little CPU.

urllib3 and not httpx2, which everything else here speaks: a gigabyte costs a quarter of the CPU. Blocking, for any
thread.
"""

import contextlib
import re
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from urllib.parse import urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx2
import urllib3
from urllib3.exceptions import HTTPError, LocationParseError

from kit.net.retry import RetryPolicy, TransientError, check_stop, pause

PIECE = 256 << 10
REDIRECTS = 5
CONNECTIONS = 32
REFUSAL_BYTES = 4096
_REDIRECTED = frozenset({301, 302, 303, 307, 308})

# Of an answer that is no content: its status, its headers, and its body's beginning.
Refuse = Callable[[int, Mapping[str, str], bytes], Exception]
OnBytes = Callable[[int], None]


class RangeClient:
    """Connections for ranged reads. The token goes to the origin of `home` only, wherever that redirects."""

    def __init__(
        self, home: str, token: str | None, *, user_agent: str, connect_s: float, stall_s: float, proxies: bool
    ) -> None:
        """`stall_s`: how long the other side may be silent. `proxies`: whether HTTPS_PROXY and its kin are obeyed."""
        self.user_agent = user_agent
        self._origin = _origin(home)
        self._token = token
        self._obeys_proxies = proxies
        self._timeout = urllib3.Timeout(connect=connect_s, read=stall_s)
        self._pools: dict[tuple[str, str | None], urllib3.PoolManager] = {}
        self._lock = threading.Lock()

    def close(self) -> None:
        """Let go of idle connections."""
        for pool in self._pools.values():
            pool.clear()

    @contextlib.contextmanager
    def get(self, url: str, first: int, last: int) -> Iterator[tuple[urllib3.BaseHTTPResponse, str]]:
        """The answer to a GET of the bytes `first` to `last` (inclusive), redirections followed, and its final URL.

        Raises TransientError.
        """
        for _ in range(REDIRECTS):
            response = self._ask(url, first, last)
            location = response.headers.get("location", "")
            if response.status not in _REDIRECTED or not location:
                try:
                    yield response, url
                except HTTPError as error:
                    raise _broken(url, error) from error
                finally:
                    # A connection with unread bytes on it is of no use to the next request.
                    response.release_conn() if response.length_remaining == 0 else response.close()
                return
            response.drain_conn()
            response.release_conn()
            url = urljoin(url, location)
        raise TransientError(f"{_origin(url)} redirects in a circle.")

    def _ask(self, url: str, first: int, last: int) -> urllib3.BaseHTTPResponse:
        headers = {"Accept-Encoding": "identity", "User-Agent": self.user_agent, "Range": f"bytes={first}-{last}"}
        if self._token is not None and _origin(url) == self._origin:
            headers["Authorization"] = f"Bearer {self._token}"
        try:
            return self._pool(url).request(
                "GET", url, headers=headers, preload_content=False, decode_content=False, redirect=False
            )
        except (HTTPError, LocationParseError) as error:
            raise _broken(url, error) from error

    def _pool(self, url: str) -> urllib3.PoolManager:
        kind = urlsplit(url).scheme, self._proxy(url)
        with self._lock:
            if kind not in self._pools:
                self._pools[kind] = self._new_pool(*kind)
            return self._pools[kind]

    def _new_pool(self, scheme: str, proxy: str | None) -> urllib3.PoolManager:
        secure = scheme == "https" or (proxy or "").startswith("https:")
        # The same trust as everything else here. Reading it takes a moment, which plain HTTP does not need.
        tls = httpx2.create_ssl_context() if secure else None
        if proxy is None:
            return urllib3.PoolManager(maxsize=CONNECTIONS, timeout=self._timeout, retries=False, ssl_context=tls)
        return urllib3.ProxyManager(proxy, maxsize=CONNECTIONS, timeout=self._timeout, retries=False, ssl_context=tls)

    def _proxy(self, url: str) -> str | None:
        parts = urlsplit(url)
        if not self._obeys_proxies or proxy_bypass(parts.hostname or ""):
            return None
        found = getproxies()
        return found.get(parts.scheme) or found.get("all")


class RangedFile:
    """One file at one URL. `refuse` makes the exception for an error response; TransientError is retried."""

    def __init__(self, client: RangeClient, url: str, refuse: Refuse, patience: RetryPolicy) -> None:
        self._client = client
        self._url = url
        self._refuse = refuse
        self._patience = patience
        # Where the URL led: asked directly from then on, until it is refused there (a signature has its hour).
        self._direct: str | None = None

    def fill(self, view: memoryview, start: int, stop: threading.Event, on_bytes: OnBytes) -> None:
        """Fill `view` with the bytes from `start` on; `on_bytes` is told of each piece. Raises what `chunks` raises."""
        done = 0
        with contextlib.closing(self.chunks(start, start + len(view), stop)) as pieces:
            for piece in pieces:
                view[done : done + len(piece)] = piece
                done += len(piece)
                on_bytes(len(piece))

    def chunks(self, start: int, end: int, stop: threading.Event, *, piece: int = PIECE) -> Generator[memoryview]:
        """Yield the bytes from `start` to before `end` in pieces of at most `piece`, of one stream where it holds.

        It is taken up again wherever it breaks; what a break takes along is less than a piece. Raises what `refuse`
        makes, TransientError after too many breaks in a row that brought nothing, Cancelled.
        """
        breaks = 0
        while start < end:
            before = start
            try:
                with contextlib.closing(self._pieces(start, end, piece)) as pieces:
                    for view in pieces:
                        start += len(view)
                        yield view
                        check_stop(stop)
                if start < end:
                    raise TransientError(f"{self._url} ended {end - start} bytes too early.")
            except TransientError as error:
                breaks = 1 if start > before else breaks + 1
                if breaks >= self._patience.tries:
                    raise
                pause(error, breaks, stop, self._patience)

    def _pieces(self, start: int, end: int, piece: int) -> Generator[memoryview]:
        direct, answered = self._direct, False
        try:
            with self._client.get(direct or self._url, start, end - 1) as (response, url):
                status = response.status
                if status == 206 and _range_start(response.headers) not in (start, None):
                    raise TransientError(f"{self._url} answered with another range than was asked for.")
                if status not in (200, 206):
                    if direct is not None:
                        raise TransientError(f"{urlsplit(direct).hostname} answered {status}.", retry_after=0.0)
                    raise self._refuse(status, response.headers, _beginning(response))
                answered = True
                if url != self._url:
                    self._direct = url
                # A server that ignores Range begins at the beginning.
                yield from _pour(response, end - start, piece, skip=start if status == 200 else 0)
        finally:
            if not answered and self._direct == direct:
                self._direct = None


def _pour(response: urllib3.BaseHTTPResponse, length: int, most: int, *, skip: int) -> Iterator[memoryview]:
    """Yield `length` bytes of the body after its first `skip`, as they lie where they were received."""
    while length and (piece := response.read(min(most, skip + length))):
        view = memoryview(piece)[skip:]
        skip = max(skip - len(piece), 0)
        length -= len(view)
        if view:
            yield view


def _beginning(response: urllib3.BaseHTTPResponse) -> bytes:
    """What an answer that is no content says, as far as it is worth reading; nothing where it breaks off."""
    try:
        return response.read(REFUSAL_BYTES)
    except HTTPError:
        return b""


def _range_start(headers: Mapping[str, str]) -> int | None:
    found = re.match(r"bytes (\d{1,18})-", headers.get("content-range", ""))
    return int(found[1]) if found else None


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def _broken(url: str, error: Exception) -> TransientError:
    # Not the error's own words: they hold the whole URL, and a signed one is a credential.
    parts = urlsplit(url)
    reason = re.sub(r"\?\S*", "?...", str(error)) or type(error).__name__
    return TransientError(f"{parts.scheme}://{parts.netloc} cannot be reached ({reason}). Check the connection to it.")
