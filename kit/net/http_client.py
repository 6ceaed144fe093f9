"""Blocking HTTP client for large downloads, safe for many threads.

urllib3 and not httpx2, which the rest of the project uses: a gigabyte costs a quarter of the CPU time.
"""

import contextlib
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from types import MappingProxyType
from urllib.parse import urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx2
import urllib3
from urllib3.exceptions import HTTPError, LocationParseError

from kit.net.retry import TransientError

MAX_REDIRECTS = 5
# Bytes of a redirect that are read to keep the connection: the Hub redirects for nearly every file.
MAX_REDIRECT_BODY = 64 << 10
MAX_CONNECTIONS = 32
_REDIRECTED = frozenset({301, 302, 303, 307, 308})
_NO_HEADERS: Mapping[str, str] = MappingProxyType({})


class HttpClient:
    """Connection pools for GET requests. The token is sent to the origin of `home` only, never to a redirect target."""

    def __init__(
        self, home: str, token: str | None,
        *, name: str, advice: str, user_agent: str, connect_timeout_s: float, read_timeout_s: float, use_proxies: bool,
    ) -> None:  # fmt: skip
        """`name` and `advice`: subject and last sentence of the error when `home` cannot be reached.

        `use_proxies`: whether HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY apply.
        """
        self._name, self._advice = name, advice
        self._user_agent = user_agent
        self._origin = _origin(home)
        self._token = token
        self._use_proxies = use_proxies
        self._timeout = urllib3.Timeout(connect=connect_timeout_s, read=read_timeout_s)
        self._pools: dict[tuple[str, str | None], urllib3.PoolManager] = {}
        self._open: set[urllib3.BaseHTTPResponse] = set()
        self._lock = threading.Lock()

    def close(self) -> None:
        """Close idle connections."""
        for pool in self._pools.values():
            pool.clear()

    def abort(self) -> None:
        """End the responses that other threads are reading, however slowly they arrive; reading raises TransientError.

        Requests that follow are not affected.
        """
        with self._lock:
            for response in self._open:
                with contextlib.suppress(OSError, RuntimeError, ValueError):  # it has ended meanwhile
                    response.shutdown()

    @contextlib.contextmanager
    def get(self, url: str, headers: Mapping[str, str] = _NO_HEADERS) -> Iterator[tuple[urllib3.BaseHTTPResponse, str]]:
        """Send a GET request and follow redirects; give the response and its final URL. Raises TransientError."""
        for _ in range(MAX_REDIRECTS):
            response = self._request(url, headers)
            location = response.headers.get("location", "")
            if response.status not in _REDIRECTED or not location:
                with self._lock:
                    self._open.add(response)
                try:
                    yield response, url
                except HTTPError as error:
                    raise self._unreachable(url, error) from error
                finally:
                    with self._lock:
                        self._open.discard(response)
                    _release(response)
                return
            with contextlib.suppress(HTTPError):
                response.read(MAX_REDIRECT_BODY)
            _release(response)
            try:
                target = urljoin(url, location)
                _origin(target)
            except ValueError as error:
                raise TransientError(f"{_place(url)} redirects to an invalid URL: {error}.") from error
            url = target
        raise TransientError(f"{_place(url)} redirects in a loop.")

    def _request(self, url: str, headers: Mapping[str, str]) -> urllib3.BaseHTTPResponse:
        sent = {"Accept-Encoding": "identity", "User-Agent": self._user_agent, **headers}
        if self._token is not None and _origin(url) == self._origin:
            sent["Authorization"] = f"Bearer {self._token}"
        try:
            return self._pool(url).request(
                "GET", url, headers=sent, preload_content=False, decode_content=False, redirect=False
            )
        except (HTTPError, LocationParseError) as error:
            raise self._unreachable(url, error) from error

    def _pool(self, url: str) -> urllib3.PoolManager:
        kind = urlsplit(url).scheme, self._proxy(url)
        with self._lock:
            if kind not in self._pools:
                self._pools[kind] = self._new_pool(*kind)
            return self._pools[kind]

    def _new_pool(self, scheme: str, proxy: str | None) -> urllib3.PoolManager:
        secure = scheme == "https" or (proxy or "").startswith("https:")
        # The same trusted certificates as in the rest of the project; loading them takes time, so only for TLS.
        tls = httpx2.create_ssl_context() if secure else None
        new: Callable[..., urllib3.PoolManager]
        new = urllib3.PoolManager if proxy is None else partial(urllib3.ProxyManager, proxy)
        return new(maxsize=MAX_CONNECTIONS, timeout=self._timeout, retries=False, ssl_context=tls)

    def _proxy(self, url: str) -> str | None:
        parts = urlsplit(url)
        if not self._use_proxies or proxy_bypass(parts.hostname or ""):
            return None
        found = getproxies()
        return found.get(parts.scheme) or found.get("all")

    def _unreachable(self, url: str, error: Exception) -> TransientError:
        # The error's text may contain the URL, and the query of a presigned URL is a credential.
        reason = re.sub(r"\?\S*", "?...", str(error)) or type(error).__name__
        if _origin(url) == self._origin:
            return TransientError(f"{self._name} cannot be reached ({reason}). {self._advice}".rstrip())
        return TransientError(f"{_place(url)} cannot be reached ({reason}). Check the connection to it.")


def _release(response: urllib3.BaseHTTPResponse) -> None:
    """Return the connection to its pool; one with unread bytes cannot be reused."""
    response.release_conn() if response.length_remaining == 0 else response.close()


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def _place(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"
