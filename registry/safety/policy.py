"""Inspection of a model on its way in: the same for a mirror, a folder and a bundle.

Names are checked by the library. Here: completeness, pickles that run code, code from elsewhere.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

import structlog

from registry.models.manifest import FileEntry
from registry.models.model_card import CARD, Card, parse_card
from registry.models.model_card import MAX_BYTES as CARD_BYTES
from registry.safety.completeness import Incomplete, MissingShards, check_file, check_series, is_index
from registry.safety.pickles import Unsafe, check_pickles, may_be_pickle
from registry.safety.remote_code import MAX_BYTES as CONFIGURATION_BYTES
from registry.safety.remote_code import code_repos, imported_modules, may_name_code
from registry.store.interface import Store

log = structlog.get_logger(__name__)


class Refused(Exception):
    """A model is refused because of its content; the message names the file and says what to do."""

    digests: frozenset[str] = frozenset()
    """The blob of a file that is refused, to be deleted when nothing reads it: one blob may be several files."""


@dataclass(frozen=True)
class Policy:
    """What is accepted."""

    pickles: Literal["scan", "allow"] = "scan"
    remote_code: bool = False

    def needs_scan(self, path: str) -> bool:
        """Whether a file of this name may lead to a refusal of its model before its weights are fetched."""
        return may_name_code(path) or is_index(path) or (self.pickles == "scan" and may_be_pickle(path))

    def without_remote_code(self) -> "Policy":
        """The policy for a repository that only provides code: code that loads code from a third one is refused."""
        return replace(self, remote_code=False)


STRICT = Policy()


@dataclass(frozen=True)
class ScanResult:
    """Result of the inspection of one file."""

    card: Card
    code_repos: frozenset[str]
    """Repositories whose code the model loads, permitted by the policy."""


class Inspection:
    """Inspects the stored files of one model before it is published. Safe for several threads."""

    def __init__(
        self, store: Store, repo: str, policy: Policy, paths: Iterable[str], left_out: Iterable[str] = ()
    ) -> None:
        """`paths` are those of the model; `left_out` exist at its source. Raises Refused if shards are missing."""
        paths = list(paths)
        self._store = store
        self._repo = repo
        self._policy = policy
        self._listed = {*paths, *left_out}
        try:
            check_series(paths, self._listed)
        except MissingShards as error:
            raise self._refused(f"{repo} is not complete: {error}. Nothing was published.") from error

    def scan(self, file: FileEntry) -> ScanResult:
        """Inspect one file. Raises Refused, BadName, StoreError."""
        try:
            return self._scan(file)
        except Refused as refused:
            refused.digests = frozenset({file.sha256})
            raise

    def _scan(self, file: FileEntry) -> ScanResult:
        card, repos, store, named = Card(), set[str](), self._store, f"{file.path} of {self._repo}"
        try:
            check_file(store, file, self._listed)
        except Incomplete as error:
            raise self._refused(f"{named} {error}. Nothing was published.") from error
        if file.path == CARD:
            card = parse_card(self._head(file, CARD_BYTES))
        if may_name_code(file.path):
            repos = self._code_repos(file, named)
        if self._policy.pickles == "scan":
            try:
                check_pickles(store, file.path, file.sha256, file.size)
            except Unsafe as error:
                raise self._refused(
                    f"{named} {error}. Nothing was published. Leave the file out (ignore_patterns of a download), use "
                    "a model with safetensors, or, if you trust its author, set PICKLE_FILES=allow."
                ) from error
        return ScanResult(card, frozenset(repos))

    def _code_repos(self, file: FileEntry, named: str) -> set[str]:
        if file.size > CONFIGURATION_BYTES:
            raise self._refused(f"{named} has {file.size} bytes, too large to check for code. Nothing was published.")
        content = self._head(file, CONFIGURATION_BYTES)
        try:
            repos, modules = code_repos(content, self._repo), imported_modules(content)
        except RecursionError as error:
            raise self._refused(f"{named} is nested too deeply to check for code. Nothing was published.") from error
        if repos and not self._policy.remote_code:
            raise self._refused(
                f"{named} loads code from {', '.join(sorted(repos))} (auto_map), which runs where the model is loaded. "
                "Review that code; with REMOTE_CODE=yes those repositories are mirrored too."
            )
        if modules and not self._policy.remote_code:
            raise self._refused(
                f"{named} imports {', '.join(sorted(modules))} (auto_mapping), which runs where the adapter is loaded. "
                "Review that code; REMOTE_CODE=yes accepts it."
            )
        return repos

    def _refused(self, message: str) -> Refused:
        log.warning("model refused", repo=self._repo, reason=message)
        return Refused(message)

    def _head(self, file: FileEntry, count: int) -> bytes:
        return b"".join(self._store.read_blob(file.sha256, 0, min(file.size, count)))
