"""What is looked at in a file between its arrival and its handing out: code that hides in it, code that it lacks."""

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

Pickles = Literal["scan", "allow"]


class Refused(Exception):
    """A model that is not published, for what is in it; the message says which file, and what to do."""

    def __init__(self, message: str, digest: str | None = None) -> None:
        super().__init__(message)
        self.digest = digest
        """The blob that must not stay, if it is one."""


@dataclass(frozen=True)
class Policy:
    """What is let in."""

    pickles: Pickles
    remote_code: bool


@dataclass(frozen=True)
class ScanResult:
    """What else there is to know of a file."""

    card: Card
    code_repos: frozenset[str]
    """Repositories whose code it makes the model load, allowed."""


def needs_scan(path: str, policy: Policy) -> bool:
    """Whether a file of this name must be here whole before anybody can tell whether its model is let in."""
    return may_name_code(path) or (policy.pickles == "scan" and may_be_pickle(path))


def scan(store: Store, repo: str, file: FileEntry, policy: Policy) -> ScanResult:
    """Look at one file of a model, in the store. Raises Refused, BadName, StoreError."""
    card, repos = Card(), set[str]()
    if file.path == CARD:
        card = parse_card(_head(store, file, CARD_BYTES))
    if may_name_code(file.path) and file.size <= CONFIGURATION_BYTES:
        repos = code_repos(_head(store, file, CONFIGURATION_BYTES), repo)
        if repos and not policy.remote_code:
            raise Refused(
                f"{file.path} of {repo} takes code from {', '.join(sorted(repos))} (auto_map), which runs where "
                "the model is loaded. Read it; REMOTE_CODE=yes then mirrors those repositories too."
            )
    if policy.pickles == "scan":
        _look_for_code(store, repo, file)
    return ScanResult(card, frozenset(repos))


def _look_for_code(store: Store, repo: str, file: FileEntry) -> None:
    try:
        check_pickles(store, file.path, file.sha256, file.size)
    except Unsafe as error:
        log.warning("refused", repo=repo, file=file.path, reason=str(error))
        raise Refused(
            f"{file.path} of {repo} {error}. Nothing was published. Leave it out with ignore_patterns, take a model "
            "with safetensors, or, if you trust its author, set PICKLE_FILES=allow.",
            file.sha256,
        ) from error


def _head(store: Store, file: FileEntry, count: int) -> bytes:
    return b"".join(store.read_blob(file.sha256, 0, min(file.size, count)))
