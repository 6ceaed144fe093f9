"""A commit's files with their sizes and digests, as git and the Hub compute them."""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from kit.config.hub_names import BadName, check_path
from kit.hub.listing import git_blob_sha1
from registry.models.model_card import Card

# The Hub keeps larger files in LFS, identified by sha256, and smaller ones in git, identified by their git blob id.
# For imported folders only: the source of a mirrored file says which it is.
LFS_FROM_BYTES = 1 << 20
# Files left out that a summary names.
MAX_NAMED = 20


class FileEntry(BaseModel):
    """One file of a model."""

    model_config = ConfigDict(frozen=True)

    path: str
    size: int = Field(ge=0, description="bytes")
    sha256: str = Field(description="of the content, 64 hex digits; the digest of its blob")
    git_sha1: str = Field(description="the git object id: of the content, or of its LFS pointer, 40 hex digits")
    lfs: bool

    @property
    def etag(self) -> str:
        """The Hub's ETag: the sha256 of LFS files, the git id of others."""
        return self.sha256 if self.lfs else self.git_sha1


class Source(BaseModel):
    """The origin of a commit, without credentials."""

    model_config = ConfigDict(frozen=True)

    kind: Literal["hub", "folder"]
    place: str = Field(description="the endpoint's URL, or the folder's name")
    repo: str | None = Field(default=None, description="the repository's id there, if it was renamed")


class LeftOut(BaseModel):
    """A file of the source that is not part of the model."""

    model_config = ConfigDict(frozen=True)

    path: str = Field(description="as at the source; with escapes if it is not a valid path")
    reason: str

    @classmethod
    def of(cls, path: str, reason: str) -> Self:
        """Make an entry of a path that was not checked."""
        try:
            check_path(path)
        except BadName:
            path = path.encode("unicode_escape").decode()
        return cls(path=path, reason=reason)


class Manifest(BaseModel):
    """One complete commit of a repository."""

    model_config = ConfigDict(frozen=True)

    repo: str
    commit: str
    files: tuple[FileEntry, ...]
    source: Source
    created: str = Field(description="when it was published, here or where its bundle was made; ISO 8601 in UTC")
    card: Card = Field(default=Card(), description="licence and base model from README.md")
    left_out: tuple[LeftOut, ...] = Field(default=(), description="files of the source that are not part of the model")

    @property
    def size(self) -> int:
        """The size of all files in bytes."""
        return sum(file.size for file in self.files)

    def file(self, path: str) -> FileEntry | None:
        """The file at `path`, or None."""
        return next((file for file in self.files if file.path == path), None)


class Name(BaseModel):
    """A name, which points at one commit of a repository."""

    model_config = ConfigDict(frozen=True)

    name: str
    repo: str
    revision: str = Field(description="the revision requested by the last publication")
    commit: str
    updated: str
    source_repo: str | None = Field(default=None, description="the repository's id at its source, if it was renamed")


def summary(left_out: Sequence[LeftOut]) -> str:
    """The files and reasons as one line for a log or a terminal."""
    more = f", and {len(left_out) - MAX_NAMED} more" if len(left_out) > MAX_NAMED else ""
    return ", ".join(f"{each.path} ({each.reason})" for each in left_out[:MAX_NAMED]) + more


def lfs_pointer(sha256: str, size: int) -> bytes:
    """The text that replaces an LFS file in git (https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md)."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def entry_of(path: str, size: int, sha256: str, git_sha1: str, *, lfs: bool | None = None) -> FileEntry:
    """Make the entry of a file from its digests, `git_sha1` of its content; with `lfs` None its size decides."""
    in_lfs = size >= LFS_FROM_BYTES if lfs is None else lfs
    if in_lfs:
        pointer = lfs_pointer(sha256, size)
        hasher = git_blob_sha1(len(pointer))
        hasher.update(pointer)
        git_sha1 = hasher.hexdigest()
    return FileEntry(path=path, size=size, sha256=sha256, git_sha1=git_sha1, lfs=in_lfs)


def commit_of(files: Iterable[FileEntry]) -> str:
    """A commit id for files that come without one: 40 hex digits that follow from paths and contents alone."""
    hasher = hashlib.sha256()
    for file in sorted(files, key=lambda file: file.path):
        hasher.update(f"{file.path}\0{file.size}\0{file.sha256}\n".encode())
    return hasher.hexdigest()[:40]
