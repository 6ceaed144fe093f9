"""Validation of Hugging Face Hub names: repositories, revisions, paths in a repository.

Every name that becomes part of a path on disk or of an object key is checked here first, against path traversal.
Rules of the Hub: https://huggingface.co/docs/hub/repositories. Branches follow `git check-ref-format`, files what git
accepts as a path, except for characters that can mislead a reader or break a line of a log.
"""

import fnmatch
import re
import unicodedata
from collections.abc import Iterable
from urllib.parse import quote

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
COMMIT = re.compile(r"^[0-9a-f]{40}$")
_COMMIT_PREFIX = re.compile(r"^[0-9a-f]{7,40}$")
SHA256 = re.compile(r"^[0-9a-f]{64}$")
MAX_PATH_BYTES = 1024  # S3's limit for a key; file systems allow little more
MAX_SEGMENT_BYTES = 240  # most file systems allow 255; our temporary names add a few
# Control characters, lone surrogates (no UTF-8), line and paragraph separators.
_UNUSABLE = frozenset({"Cc", "Cs", "Zl", "Zp"})
# Change the order in which the rest of the name is shown (CVE-2021-42574).
_BIDIRECTIONAL = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
# Not in a branch: git-check-ref-format(1).
_NOT_IN_REFS = frozenset(" ~^:?*[\\")


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
    if reason := _reason_against_revision(value):
        raise BadName(f"{value!r} is not a revision (a commit of 40 hex digits, a branch or a tag): {reason}.")
    return value


def _reason_against_revision(value: str) -> str | None:
    character = _unusable_character(value) or next((each for each in value if each in _NOT_IN_REFS), None)
    if character is not None:
        return f"it contains {describe_character(character)}"
    if any(part == "" or part.startswith(".") or part.endswith(".lock") for part in value.split("/")):
        return "a part is empty, begins with '.' or ends with '.lock'"
    if ".." in value or "@{" in value or value.startswith("-") or value.endswith(".") or value == "@":
        return "it contains '..' or '@{', begins with '-', ends with '.', or is '@'"
    if len(quote(value, safe="")) > MAX_SEGMENT_BYTES:
        return f"it is longer than {MAX_SEGMENT_BYTES} bytes with percent-encoding"
    return None


def is_commit_prefix(value: str) -> bool:
    """Whether `value` abbreviates a commit as git does: at least its first 7 hex digits."""
    return _COMMIT_PREFIX.fullmatch(value) is not None


def check_path(value: str) -> str:
    """Return `value` if it is a file's path in a repository: relative, with '/', without traversal.

    Raises BadName.
    """
    if reason := _reason_against_path(value):
        raise BadName(f"{value!r} is not a file path of a repository: {reason}.")
    return value


def _reason_against_path(value: str) -> str | None:
    character = _unusable_character(value) or ("\\" if "\\" in value else None)
    if character is not None:
        return f"it contains {describe_character(character)}"
    segments = value.split("/")
    if "" in segments:
        return "a part is empty" if segments[0] else "it is empty or absolute"
    if any(segment in (".", "..") or segment.lower() == ".git" for segment in segments):
        return "it has a part '.', '..' or '.git'"
    if re.match("[A-Za-z]:", value):
        return "it begins with a drive letter"
    if len(value.encode()) > MAX_PATH_BYTES:
        return f"it is longer than {MAX_PATH_BYTES} bytes"
    if any(len(segment.encode()) > MAX_SEGMENT_BYTES for segment in segments):
        return f"a part is longer than {MAX_SEGMENT_BYTES} bytes"
    return None


def describe_character(character: str) -> str:
    """Return the code point and Unicode name of a character: `U+202E RIGHT-TO-LEFT OVERRIDE`."""
    return f"U+{ord(character):04X} {unicodedata.name(character, '(no name)')}"


def _unusable_character(value: str) -> str | None:
    return next((each for each in value if unicodedata.category(each) in _UNUSABLE or each in _BIDIRECTIONAL), None)


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
