"""Validation of Hugging Face Hub names: repositories, revisions, paths in a repository.

Every name that becomes part of a path on disk or of an object key is checked here first, against path traversal.
Rules of the Hub: https://huggingface.co/docs/hub/repositories and `git check-ref-format`.
"""

import fnmatch
import re
from collections.abc import Iterable

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
COMMIT = re.compile(r"^[0-9a-f]{40}$")
SHA256 = re.compile(r"^[0-9a-f]{64}$")
_REVISION = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._/+-]{0,199}$")
MAX_PATH_BYTES = 1024  # S3's limit for a key; file systems allow little more
MAX_SEGMENT_BYTES = 240  # most file systems allow 255; our temporary names add a few


class BadName(ValueError):
    """An invalid name; the message shows it and states the rule."""


def check_name(value: str) -> str:
    """Return `value` if it is a model name such as `qwen`. Raises BadName."""
    if not NAME.fullmatch(value) or ".." in value:
        raise BadName(f"{value!r} is not a model name: letters, digits, '.', '_', '-', at most 96, none of them '..'.")
    return value


def check_repo(value: str) -> str:
    """Return `value` if it is a repository, ORG/NAME or NAME. Raises BadName.

    `--` is rejected, as on the Hub; our folders and keys use it in place of the slash.
    """
    parts = value.split("/")
    if len(parts) > 2 or not all(NAME.fullmatch(part) for part in parts) or "--" in value or ".." in value:
        raise BadName(
            f"{value!r} is not a repository: ORG/NAME of letters, digits, '.', '_', '-', without '--' or '..'."
        )
    return value


def repo_folder(repo: str) -> str:
    """Return the path segment of a checked repository: `org--name`."""
    return repo.replace("/", "--")


def check_revision(value: str) -> str:
    """Return `value` if it is a branch, tag or commit. Raises BadName."""
    if not _REVISION.fullmatch(value) or ".." in value or "//" in value or value.endswith(("/", ".", ".lock")):
        raise BadName(f"{value!r} is not a revision: a commit of 40 hex digits, a branch or a tag.")
    return value


def check_path(value: str) -> str:
    """Return `value` if it is a file's path in a repository: relative, with '/', without traversal.

    Raises BadName.
    """
    segments = value.split("/")
    if (
        len(value.encode(errors="surrogatepass")) > MAX_PATH_BYTES
        or not value.isprintable()
        or "\\" in value
        or ":" in segments[0]
        or any(segment in ("", ".", "..") or segment != segment.strip() for segment in segments)
        or any(len(segment.encode(errors="surrogatepass")) > MAX_SEGMENT_BYTES for segment in segments)
    ):
        raise BadName(f"{value!r} is not a file path of a repository: relative, with '/', without '..' or empty parts.")
    return value


def check_paths(values: Iterable[str]) -> None:
    """Check the paths of one repository: each valid, no duplicates, no path both file and folder.

    Raises BadName.
    """
    seen: set[str] = set()
    folders: set[str] = set()
    for value in values:
        check_path(value)
        if value in seen:
            raise BadName(f"{value!r} appears twice in one repository.")
        seen.add(value)
        parts = value.split("/")
        folders.update("/".join(parts[:depth]) for depth in range(1, len(parts)))
    both = sorted(seen & folders)
    if both:
        raise BadName(f"{both[0]!r} is both a file and a folder of one repository.")


def matches(path: str, patterns: Iterable[str]) -> bool:
    """Whether `path` matches one of `patterns` (fnmatch); `folder/` matches all below it, as in the Hub's client."""
    return any(fnmatch.fnmatchcase(path, pattern + "*" if pattern.endswith("/") else pattern) for pattern in patterns)


def chosen(paths: Iterable[str], allow: Iterable[str] | None, ignore: Iterable[str] | None) -> list[str]:
    """Return the paths that match `allow` (None: all) and not `ignore`, in the given order."""
    allowed, ignored = None if allow is None else list(allow), list(ignore or ())
    return [path for path in paths if (allowed is None or matches(path, allowed)) and not matches(path, ignored)]
