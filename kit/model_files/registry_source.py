"""The registry as the source of model files: what a model consists of, and the bytes of each file.

Spoken through the Hub API, so any server with that API will do. Blocking; one instance per fetch.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import quote

import httpx2

from kit.config.catalogue import Entry
from kit.config.hub_names import COMMIT, SHA256, BadName, check_paths, chosen
from kit.net.range_client import RangeClient, RangedFile
from kit.net.retry import RETRY_POLICY, TransientError

CHUNK = 1 << 20
CONNECT_TIMEOUT_S = 5.0
STALL_TIMEOUT_S = 15.0
MAX_REASON = 300


class ModelFilesError(Exception):
    """The files could not be had. `may_pass` says whether waiting and trying again can help."""

    # How far the registry is with mirroring the model, 0 to 1, and when to ask again, in seconds, as it says itself.
    progress: float | None = None
    retry_after_s: float | None = None

    def __init__(self, message: str, *, may_pass: bool) -> None:
        super().__init__(message)
        self.may_pass = may_pass


class NotThereYet(ModelFilesError):
    """The registry answers that the model is on its way to it, or why it could not be mirrored for now."""

    def __init__(self, message: str, *, progress: float | None, retry_after_s: float | None) -> None:
        super().__init__(message, may_pass=True)
        self.progress = progress
        self.retry_after_s = retry_after_s


@dataclass(frozen=True)
class RemoteFile:
    """One file of a model as the registry describes it."""

    path: str
    size: int
    digest: str
    """`sha256:<64 hex>`, or `git-sha1:<40 hex>` where the server has only git's blob id (small files on the Hub)."""

    def hasher(self) -> "hashlib._Hash":
        """A fresh hash that, fed with the content, gives `digest`."""
        if self.digest.startswith("sha256:"):
            return hashlib.sha256()
        return hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False)

    def is_proved_by(self, hasher: "hashlib._Hash") -> bool:
        """Whether what `hasher` was fed is this file."""
        return self.digest.partition(":")[2] == hasher.hexdigest()


@dataclass(frozen=True)
class Listing:
    """The files of a model at one commit."""

    commit: str
    files: tuple[RemoteFile, ...]

    @property
    def size(self) -> int:
        """The bytes of all files together."""
        return sum(file.size for file in self.files)


class RegistrySource:
    """Asks one registry. A context manager: closes its connections at the end."""

    def __init__(self, url: str, token: str | None) -> None:
        self.url = url.rstrip("/")
        self._client = httpx2.Client(
            # An explicit transport: the registry is in our own network, whatever HTTP_PROXY says of the internet.
            transport=httpx2.HTTPTransport(),
            headers={"Accept-Encoding": "identity"} | ({"Authorization": f"Bearer {token}"} if token else {}),
            timeout=httpx2.Timeout(STALL_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
            follow_redirects=True,
        )
        self._ranges = RangeClient(
            self.url, token, user_agent="gpu-cluster", connect_s=CONNECT_TIMEOUT_S, stall_s=STALL_TIMEOUT_S,
            proxies=False,
        )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()
        self._ranges.close()

    def listing(self, entry: Entry) -> Listing:
        """What `entry` consists of at its revision, its allow and ignore patterns applied.

        Raises TransientError, NotThereYet, or ModelFilesError if the model is unknown or the answer invalid.
        """
        address = f"{self.url}/api/models/{entry.hf_repo}/revision/{quote(entry.revision, safe='')}?blobs=1"
        try:
            # A registry that mirrors the model just now says how far it is, instead of having us wait for it.
            response = self._client.get(address, headers={"Prefer": "respond-async"})
        except (httpx2.TransportError, httpx2.InvalidURL) as error:
            raise self._down(error) from error
        if response.status_code == 503:
            _raise_not_there_yet(response)
        if response.status_code == 404:
            raise ModelFilesError(
                f"{entry.hf_repo} at {entry.revision} is not in the registry at {self.url}. Mirror it with "
                f"scripts/offline-setup.sh, or POST {self.url}/models/{entry.name}/download.",
                may_pass=True,
            )
        if response.status_code != 200:
            raise self._refusal(response.status_code, "the list of files", address, response.content)
        try:
            return _parse_listing(response.json(), entry)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelFilesError(
                f"{address} gave no list of files that could be used ({type(error).__name__}: {error}). "
                "Is REGISTRY_URL a registry?",
                may_pass=False,
            ) from error

    def file(self, entry: Entry, listing: Listing, file: RemoteFile) -> RangedFile:
        """Return a file to read by ranges; reading raises TransientError, ModelFilesError if refused, Cancelled."""
        url = f"{self.url}/{entry.hf_repo}/resolve/{listing.commit}/{quote(file.path)}"

        def refuse(status: int, _headers: Mapping[str, str], body: bytes) -> Exception:
            return self._refusal(status, file.path, url, body)

        return RangedFile(self._ranges, url, refuse, RETRY_POLICY)

    def _refusal(self, status: int, what: str, url: str, body: bytes) -> Exception:
        """What an answer other than the content means, and says in its `body`: TransientError where it may pass."""
        if status in (401, 403):
            return ModelFilesError(
                f"The registry at {self.url} refuses {what} ({status}). Set REGISTRY_TOKEN to one of its API_KEYS.",
                may_pass=False,
            )
        if status == 429 or status >= 500:
            return TransientError(f"The registry at {self.url} answered {status} for {what}{_reason(body)}")
        return ModelFilesError(
            f"{url} answered {status} for {what}{_reason(body)} Download the model there again.", may_pass=True
        )

    def _down(self, error: Exception) -> TransientError:
        reason = str(error) or type(error).__name__
        return TransientError(f"The registry at {self.url} does not answer ({reason}).")


def _raise_not_there_yet(response: httpx2.Response) -> None:
    """Raise NotThereYet when this 503 tells of a model that is being mirrored; any other one is a server's trouble."""
    error = _error_in(response.content)
    if error.get("code") in ("model_loading", "model_failed") and "message" in error:
        message, progress = str(error["message"]), _number(response.headers.get("x-mirror-progress"))
        raise NotThereYet(message, progress=progress, retry_after_s=_number(response.headers.get("retry-after")))


def _reason(body: bytes) -> str:
    """The end of a sentence: the message of an error in our envelope, in one line and not endless, else a full stop."""
    message = _error_in(body).get("message")
    if not isinstance(message, str) or not message.strip():
        return "."
    plain = " ".join("".join(letter if letter.isprintable() else " " for letter in message).split())
    return f": {plain}" if len(plain) <= MAX_REASON else f": {plain[:MAX_REASON]} ..."


def _error_in(body: bytes) -> Mapping[str, object]:
    """The error in an answer that is our envelope; nothing where it is another."""
    try:
        error = json.loads(body)["error"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}
    return error if isinstance(error, dict) else {}


def _number(value: str | None) -> float | None:
    """A header's plain decimal number, else None."""
    return float(value) if value and re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", value) else None


def _parse_listing(document: dict[str, Any], entry: Entry) -> Listing:
    commit = str(document["sha"])
    if not COMMIT.fullmatch(commit):
        raise BadName(f"{commit!r} is not a commit")
    siblings = {str(sibling["rfilename"]): sibling for sibling in document["siblings"]}
    check_paths(sibling["rfilename"] for sibling in document["siblings"])
    paths = chosen(siblings, entry.allow_patterns, entry.ignore_patterns)
    if not paths:
        raise BadName("no file is left after allow_patterns and ignore_patterns")
    return Listing(commit, tuple(_remote_file(path, siblings[path]) for path in sorted(paths)))


def _remote_file(path: str, sibling: dict[str, Any]) -> RemoteFile:
    sha256 = (sibling.get("lfs") or {}).get("sha256") or sibling.get("sha256")
    digest = f"sha256:{sha256}" if sha256 else f"git-sha1:{sibling['blobId']}"
    if not (SHA256 if sha256 else COMMIT).fullmatch(digest.partition(":")[2]):
        raise BadName(f"{path} comes with the digest {digest!r}")
    size = int(sibling["size"])
    if size < 0:
        raise BadName(f"{path} comes with the size {size}")
    return RemoteFile(path, size, digest)
