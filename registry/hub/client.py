"""A client of a Hugging Face Hub: the real one, a mirror of it, or another registry. Blocking, for any thread."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, TypeVar
from urllib.parse import quote

import httpx2

from kit.config.hub_names import COMMIT, SHA256, BadName, check_paths
from kit.net.range_client import RangeClient, RangedFile
from kit.net.retry import RETRY_POLICY, RetryPolicy, TransientError, pause

AGENT = "gpu-cluster-registry"
CONNECT_TIMEOUT_S = 10.0
STALL_TIMEOUT_S = 30.0
MAX_FILES = 100_000
# Another registry that mirrors the model itself only now: parts of files are asked for at once, in any order, which
# wants the files to be there.
_WHOLE = MappingProxyType({"Prefer": "wait=86400"})

T = TypeVar("T")


class HubError(Exception):
    """The source will not give what was asked; the message says why and what to do."""


@dataclass(frozen=True)
class SourceFile:
    """One file as the source describes it. At least one digest is known."""

    path: str
    size: int
    lfs: bool
    sha256: str | None
    git_sha1: str | None
    """The git-blob id of the content; None for LFS files, where the source's id is that of the pointer."""


@dataclass(frozen=True)
class Listing:
    """A repository at one commit."""

    commit: str
    files: tuple[SourceFile, ...]


class Hub:
    """One endpoint, with the token for it. The token goes to that endpoint only, not to where it redirects.

    `patience` is for the contents of files, which may take days; a list that cannot be had is told within seconds.
    """

    def __init__(
        self,
        endpoint: str,
        token: str | None,
        patience: RetryPolicy = RETRY_POLICY,
        *,
        stall_s: float = STALL_TIMEOUT_S,
        max_file_size: int,
    ) -> None:
        self.endpoint = endpoint.rstrip("/")
        self._has_token = token is not None
        self._patience = patience
        self._max_file_size = max_file_size
        self._ranges = RangeClient(
            self.endpoint, token, user_agent=AGENT, connect_s=CONNECT_TIMEOUT_S, stall_s=stall_s, proxies=True
        )
        self._client = httpx2.Client(
            headers={"Accept-Encoding": "identity", "User-Agent": AGENT}
            | ({"Authorization": f"Bearer {token}"} if token else {}),
            timeout=httpx2.Timeout(stall_s, connect=CONNECT_TIMEOUT_S),
            limits=httpx2.Limits(max_connections=None),
            follow_redirects=True,
        )

    def close(self) -> None:
        """Close the connections."""
        self._client.close()
        self._ranges.close()

    def listing(self, repo: str, revision: str, stop: threading.Event) -> Listing:
        """Resolve `revision` to a commit and list its files. Raises HubError, TransientError, Cancelled."""
        address = f"{self.endpoint}/api/models/{repo}"
        info = self._patiently(
            lambda: self._json(f"{address}/revision/{quote(revision, safe='')}", repo, revision, _WHOLE), stop
        )
        commit = str(info.body.get("sha")) if isinstance(info.body, dict) else ""
        if not COMMIT.fullmatch(commit):
            raise HubError(f"{self.endpoint} gave no commit for {repo} at {revision}. Is HF_ENDPOINT a Hub?")
        entries: list[dict[str, Any]] = []
        url: str | None = f"{address}/tree/{commit}?recursive=true&expand=false"
        while url is not None:
            page = self._patiently(partial(self._json, url, repo, commit), stop)
            entries += page.body
            url = self._checked_next(page.next_url)
            if len(entries) > MAX_FILES:
                raise HubError(f"{repo} has more than {MAX_FILES} files, which is no model.")
        try:
            files = tuple(_source_file(entry, self._max_file_size) for entry in entries if entry["type"] == "file")
            check_paths(file.path for file in files)
        except (BadName, KeyError, TypeError, ValueError) as error:
            raise HubError(f"{self.endpoint} lists {repo} in a way that is refused: {error}") from error
        return Listing(commit, files)

    def file(self, repo: str, commit: str, path: str) -> RangedFile:
        """A file, to be read by ranges; reading raises TransientError, HubError, Cancelled."""

        def refuse(status: int, headers: Mapping[str, str], _body: bytes) -> Exception:
            return self._refusal(status, headers, repo, commit, path)

        url = f"{self.endpoint}/{repo}/resolve/{commit}/{quote(path)}"
        return RangedFile(self._ranges, url, refuse, self._patience)

    def _json(
        self, url: str, repo: str, revision: str, headers: Mapping[str, str] = MappingProxyType({})
    ) -> "_Page":  # fmt: skip
        try:
            response = self._client.get(url, headers=headers)
        except httpx2.TransportError as error:
            raise self._broken(error) from error
        except (httpx2.TooManyRedirects, httpx2.InvalidURL) as error:
            raise HubError(f"{url} cannot be read: {error}. Check HF_ENDPOINT.") from error
        if response.status_code != 200:
            raise self._refusal(response.status_code, response.headers, repo, revision, "")
        try:
            return _Page(response.json(), response.links.get("next", {}).get("url"))
        except ValueError as error:
            raise HubError(f"{url} did not answer with JSON. Is HF_ENDPOINT a Hub?") from error

    def _refusal(self, status: int, headers: Mapping[str, str], repo: str, revision: str, path: str) -> Exception:
        """What an answer other than the content means: TransientError where it may pass, else HubError."""
        code = headers.get("x-error-code", "")
        what = f"{path} of {repo}" if path else repo
        if status == 429 or status >= 500:
            return TransientError(f"{self.endpoint} answered {status} for {what}.", retry_after=_seconds(headers))
        if code == "GatedRepo" or status == 403:
            step = "use a token whose account has accepted it" if self._has_token else "set HF_TOKEN"
            return HubError(f"{repo} is gated: accept its licence at {self.endpoint}/{repo} and {step}.")
        if code == "RevisionNotFound":
            return HubError(
                f"{repo} has no revision {revision!r} at {self.endpoint}. Ask for a branch, tag or commit of it."
            )
        if status == 416:
            return HubError(f"{what} is shorter at {self.endpoint} than it is said to be. Try again later.")
        if code == "EntryNotFound":
            return HubError(f"{what} is not at {self.endpoint} any more. Download the model again.")
        if status in (401, 404):
            step = "Check the name, and HF_TOKEN's rights." if self._has_token else "Check the name, or set HF_TOKEN."
            return HubError(f"{repo} does not exist at {self.endpoint}, or is private ({status}). {step}")
        return HubError(f"{self.endpoint} answered {status} for {what}. Check HF_ENDPOINT.")

    def _patiently(self, ask: Callable[[], T], stop: threading.Event) -> T:
        tries = 0
        while True:
            try:
                return ask()
            except TransientError as error:
                tries += 1
                if tries >= RETRY_POLICY.tries:
                    raise
                pause(error, tries, stop)

    def _checked_next(self, url: str | None) -> str | None:
        """The next page, only if it is at the endpoint itself: the token would travel with the request."""
        if url is None:
            return None
        if httpx2.URL(url).origin != httpx2.URL(self.endpoint).origin:
            raise HubError(f"{self.endpoint} sends to {url} for the rest of its list, which is refused.")
        return url

    def _broken(self, error: Exception) -> TransientError:
        reason = str(error) or type(error).__name__
        return TransientError(
            f"{self.endpoint} cannot be reached ({reason}). Check the connection to it, or HF_ENDPOINT."
        )


@dataclass(frozen=True)
class _Page:
    body: Any
    next_url: str | None


def _seconds(headers: Mapping[str, str]) -> float | None:
    value = headers.get("retry-after", "")
    return float(value) if value.isascii() and value.isdigit() else None


def _source_file(entry: dict[str, Any], max_size: int) -> SourceFile:
    path, size, lfs = entry["path"], entry["size"], entry.get("lfs")
    if lfs is not None and not (isinstance(lfs, dict) and lfs.get("size", size) == size):
        raise ValueError(f"{str(path)[:100]} with an LFS entry that is none")
    if not isinstance(path, str) or type(size) is not int:
        raise ValueError(f"{str(path)[:100]} with a path or size that is none")
    sha256 = str(lfs["oid"]) if lfs else entry.get("sha256")
    git_sha1 = None if lfs else str(entry["oid"])
    if not 0 <= size <= max_size:
        raise ValueError(f"{path} with a size of {size} bytes")
    if (sha256 is not None and not SHA256.fullmatch(sha256)) or (
        git_sha1 is not None and not COMMIT.fullmatch(git_sha1)
    ):
        raise ValueError(f"{path} with a digest that is none")
    return SourceFile(path, size, lfs is not None, sha256, git_sha1)
