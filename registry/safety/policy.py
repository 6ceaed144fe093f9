"""Inspect a file between download and publication: pickles that run code, and code from other repositories."""

from dataclasses import dataclass
from typing import Literal

import structlog

from registry.models.manifest import FileEntry
from registry.models.model_card import CARD, Card, parse_card
from registry.models.model_card import MAX_BYTES as CARD_BYTES
from registry.safety.pickles import Unsafe, check_pickles, may_be_pickle
from registry.safety.remote_code import MAX_BYTES as CONFIGURATION_BYTES
from registry.safety.remote_code import code_repos, may_name_code
from registry.store.interface import Store

log = structlog.get_logger(__name__)


class Refused(Exception):
    """A model is refused because of its content; the message names the file and says what to do."""

    def __init__(self, message: str, digest: str | None = None) -> None:
        super().__init__(message)
        self.digest = digest
        """The blob to delete, if any."""


@dataclass(frozen=True)
class Policy:
    """Policy for files from a source."""

    pickles: Literal["scan", "allow"]
    remote_code: bool


@dataclass(frozen=True)
class ScanResult:
    """Result of the scan of one file."""

    card: Card
    code_repos: frozenset[str]
    """Repositories whose code the model loads, permitted by the policy."""


def needs_scan(path: str, policy: Policy) -> bool:
    """Whether a file of this name may lead to a refusal of its model."""
    return may_name_code(path) or (policy.pickles == "scan" and may_be_pickle(path))


def scan(store: Store, repo: str, file: FileEntry, policy: Policy) -> ScanResult:
    """Inspect one stored file of a model. Raises Refused, BadName, StoreError."""
    card, repos = Card(), set[str]()
    if file.path == CARD:
        card = parse_card(_head(store, file, CARD_BYTES))
    if may_name_code(file.path) and file.size <= CONFIGURATION_BYTES:
        repos = code_repos(_head(store, file, CONFIGURATION_BYTES), repo)
        if repos and not policy.remote_code:
            raise Refused(
                f"{file.path} of {repo} loads code from {', '.join(sorted(repos))} (auto_map), which runs where the "
                "model is loaded. Review that code; with REMOTE_CODE=yes those repositories are mirrored too."
            )
    if policy.pickles == "scan":
        _scan_pickles(store, repo, file)
    return ScanResult(card, frozenset(repos))


def _scan_pickles(store: Store, repo: str, file: FileEntry) -> None:
    try:
        check_pickles(store, file.path, file.sha256, file.size)
    except Unsafe as error:
        log.warning("model refused", repo=repo, file=file.path, reason=str(error))
        raise Refused(
            f"{file.path} of {repo} {error}. Nothing was published. Exclude the file with ignore_patterns, use a model "
            "with safetensors, or, if you trust its author, set PICKLE_FILES=allow.",
            file.sha256,
        ) from error


def _head(store: Store, file: FileEntry, count: int) -> bytes:
    return b"".join(store.read_blob(file.sha256, 0, min(file.size, count)))
