"""The files of a repository at one commit, as the Hub API lists them. Pure.

https://huggingface.co/docs/hub/api: `GET /api/models/{repo}/revision/{revision}?blobs=true`.
"""

import hashlib
from collections.abc import Container
from dataclasses import dataclass, replace
from typing import Any, Self

from kit.config.hub_names import COMMIT, SHA256, BadName, check_paths, check_repo

# The Hub's clients expect incomplete listings from here on.
MAX_FILES = 50_000
# The largest object of S3.
MAX_FILE_BYTES = 5 << 40


@dataclass(frozen=True)
class RemoteFile:
    """One file of a listing, with at least one of its digests."""

    path: str
    size: int
    sha256: str | None
    git_sha1: str | None
    """The git blob id of the content; None for LFS files, where git has the id of the pointer."""
    is_lfs: bool = False

    @classmethod
    def with_digest(cls, path: str, size: int, digest: str) -> Self:
        """Make a file from its `digest` in the form of the property."""
        kind, _, value = digest.partition(":")
        return cls(path, size, value if kind == "sha256" else None, None if kind == "sha256" else value)

    @property
    def digest(self) -> str:
        """`sha256:<64 hex>`, or `git-sha1:<40 hex>` where the sha256 is unknown (small files on huggingface.co)."""
        return f"sha256:{self.sha256}" if self.sha256 else f"git-sha1:{self.git_sha1}"

    def hasher(self) -> "hashlib._Hash":
        """Return a hash of the kind of `digest`, for the content."""
        return hashlib.sha256() if self.sha256 else git_blob_sha1(self.size)

    def matches(self, hasher: "hashlib._Hash") -> bool:
        """Return whether `hasher`, fed with all of the content, has this file's digest."""
        return hasher.hexdigest() == (self.sha256 or self.git_sha1)


@dataclass(frozen=True)
class Listing:
    """A repository at one commit. The paths are as the source sent them until `select` has checked them."""

    commit: str
    files: tuple[RemoteFile, ...]
    repo: str | None = None
    """The repository's id at the Hub: another one than requested if it was renamed. None if unknown."""

    @property
    def size(self) -> int:
        """Total size in bytes."""
        return sum(file.size for file in self.files)

    def select(self, paths: Container[str]) -> Self:
        """Return the listing of the files at `paths`, whose names are valid. Raises BadName."""
        files = tuple(file for file in self.files if file.path in paths)
        check_paths(file.path for file in files)
        return replace(self, files=files)


def parse_listing(document: Any) -> Listing:
    """Parse a listing and check all but its paths. Raises ValueError, KeyError, TypeError or AttributeError."""
    if not COMMIT.fullmatch(document["sha"]):
        raise ValueError(f"invalid commit {document['sha']!r}")
    siblings = document["siblings"]
    if len(siblings) >= MAX_FILES:
        raise ValueError(f"{len(siblings)} files; at most {MAX_FILES} are supported")
    files = tuple(_remote_file(sibling) for sibling in siblings)
    return Listing(document["sha"], files, _repo_of(document.get("id")))


def git_blob_sha1(size: int) -> "hashlib._Hash":
    """Return a hash that gives the git blob id of a content of `size` bytes."""
    return hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)


def _repo_of(id: object) -> str | None:
    try:
        return check_repo(id) if isinstance(id, str) else None
    except BadName:  # a mirror's own id
        return None


def _remote_file(sibling: Any) -> RemoteFile:
    path, size, lfs = sibling["rfilename"], sibling["size"], sibling.get("lfs")
    if not isinstance(path, str) or type(size) is not int or not 0 <= size <= MAX_FILE_BYTES:
        raise ValueError(f"invalid path {path!r:.100} or size {size!r:.100}")
    if lfs is not None and not (isinstance(lfs, dict) and lfs.get("size", size) == size):
        raise ValueError(f"invalid LFS entry of {path:.100}")
    sha256 = lfs["sha256"] if lfs else sibling.get("sha256")
    git_sha1 = None if lfs else sibling.get("blobId")
    if (
        (sha256 is None and git_sha1 is None)
        or (sha256 is not None and not SHA256.fullmatch(sha256))
        or (git_sha1 is not None and not COMMIT.fullmatch(git_sha1))
    ):
        raise ValueError(f"invalid digest of {path:.100}")
    return RemoteFile(path, size, sha256, git_sha1, is_lfs=bool(lfs))
