"""Names as the Hugging Face Hub spells them: repositories, revisions, paths in a repository. One function a check.

Everything that becomes part of a path on disk or of a key in a bucket passes through here first, so that no name can
reach outside its folder. Rules of the Hub: https://huggingface.co/docs/hub/repositories and `git check-ref-format`.
"""

import fnmatch
import re
from collections.abc import Iterable

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
COMMIT = re.compile(r"^[0-9a-f]{40}$")
SHA256 = re.compile(r"^[0-9a-f]{64}$")
_REVISION = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._/+-]{0,199}$")
MAX_PATH_BYTES = 1024  # S3's limit for a key; and no file system takes much more
MAX_SEGMENT_BYTES = 240  # most file systems take 255; our temporary names add a few


class BadName(ValueError):
    """A name that is not one; the message shows it and tells the rule."""


def check_name(value: str) -> str:
    """Return `value` if it is a model name such as `qwen`. Raises BadName."""
    if not NAME.fullmatch(value) or ".." in value:
        raise BadName(f"{value!r} is not a model name: letters, digits, '.', '_', '-', at most 96, none of them '..'.")
    return value


def check_repo(value: str) -> str:
    """Return `value` if it is a repository, ORG/NAME or NAME. Raises BadName.

    `--` is refused as the Hub refuses it; our folders and keys use it in place of the slash.
    """
    parts = value.split("/")
    if len(parts) > 2 or not all(NAME.fullmatch(part) for part in parts) or "--" in value or ".." in value:
        raise BadName(
            f"{value!r} is not a repository: ORG/NAME of letters, digits, '.', '_', '-', without '--' or '..'."
        )
    return value


def repo_folder(repo: str) -> str:
    """The one path segment that stands for a checked repository: `org--name`."""
    return repo.replace("/", "--")


def check_revision(value: str) -> str:
    """Return `value` if it is a branch, tag or commit. Raises BadName."""
    if not _REVISION.fullmatch(value) or ".." in value or "//" in value or value.endswith(("/", ".", ".lock")):
        raise BadName(f"{value!r} is not a revision: a commit of 40 hex digits, a branch or a tag.")
    return value


def check_path(value: str) -> str:
    """Return `value` if it is a file's path in a repository: relative, with '/', and nothing that leads elsewhere.

    Raises BadName.
    """
    segments = value.split("/")
    if (
        len(value.encode(errors="surrogatepass")) > MAX_PATH_BYTES
        or not value.isprintable()
        or "\\" in value
        or ":" in segments[0]
        or not all(_is_segment(segment) for segment in segments)
    ):
        raise BadName(f"{value!r} is not a file path of a repository: relative, with '/', without '..' or empty parts.")
    return value


def _is_segment(segment: str) -> bool:
    """Whether `segment` can name a file or folder, and only that."""
    return (
        segment not in ("", ".", "..")
        and segment == segment.strip()
        and len(segment.encode(errors="surrogatepass")) <= MAX_SEGMENT_BYTES
    )


def check_paths(values: Iterable[str]) -> None:
    """Check the paths of one repository together: each is a path, none appears twice, no file is another's folder.

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
    """Whether `path` fits one of `patterns`, shell style; `folder/` means all below it, as in the Hub's client."""
    return any(fnmatch.fnmatchcase(path, pattern + "*" if pattern.endswith("/") else pattern) for pattern in patterns)


def chosen(paths: Iterable[str], allow: Iterable[str] | None, ignore: Iterable[str] | None) -> list[str]:
    """The paths that fit `allow` (None: all of them) and do not fit `ignore`, in the order given."""
    allowed, ignored = None if allow is None else list(allow), list(ignore or ())
    return [path for path in paths if (allowed is None or matches(path, allowed)) and not matches(path, ignored)]
