"""What a model is: one commit's files with their sizes and digests, as git and the Hub compute them."""

import hashlib
from collections.abc import Iterable
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from registry.models.model_card import Card

# A file from here on is kept by the Hub in LFS, told by its sha256; a smaller one in git, told by its git-blob sha1.
# Only for what we import ourselves: of a mirrored file the source says which it is.
LFS_FROM_BYTES = 1 << 20


class FileEntry(BaseModel):
    """One file of a model."""

    model_config = ConfigDict(frozen=True)

    path: str
    size: int = Field(ge=0, description="bytes")
    sha256: str = Field(description="of the content, 64 hex digits: the name of its blob")
    git_sha1: str = Field(description="the git object id: of the content, or of its LFS pointer, 40 hex digits")
    lfs: bool

    @property
    def etag(self) -> str:
        """What the Hub gives as ETag: the sha256 for LFS files, the git id for the others."""
        return self.sha256 if self.lfs else self.git_sha1


class Source(BaseModel):
    """Where a commit came from. Never holds a credential."""

    model_config = ConfigDict(frozen=True)

    kind: Literal["hub", "folder"]
    place: str = Field(description="the endpoint's URL, or the folder's name")


class Manifest(BaseModel):
    """One commit of one repository, complete."""

    model_config = ConfigDict(frozen=True)

    repo: str
    commit: str
    files: tuple[FileEntry, ...]
    source: Source
    created: str = Field(description="when it was published here, ISO 8601 in UTC")
    card: Card = Field(default=Card(), description="what its README.md says of licence and origin")

    @property
    def size(self) -> int:
        """The bytes of all files together."""
        return sum(file.size for file in self.files)

    def file(self, path: str) -> FileEntry | None:
        """The file at `path`, or None."""
        return next((file for file in self.files if file.path == path), None)


class Name(BaseModel):
    """A name points at one commit of one repository."""

    model_config = ConfigDict(frozen=True)

    name: str
    repo: str
    revision: str = Field(description="what was asked for when the name was last published")
    commit: str
    updated: str


def git_blob_sha1(size: int) -> "hashlib._Hash":
    """A hash that, fed with the content of a file of `size` bytes, gives its git-blob id."""
    return hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)


def lfs_pointer(sha256: str, size: int) -> bytes:
    """The text that git keeps in place of an LFS file (https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md)."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def entry_of(path: str, size: int, sha256: str, content_git_sha1: str, *, lfs: bool | None = None) -> FileEntry:
    """The entry of a file whose content is known; `lfs` None decides by size."""
    in_lfs = size >= LFS_FROM_BYTES if lfs is None else lfs
    git_sha1 = content_git_sha1
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
