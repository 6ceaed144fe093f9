"""Keep one process from publishing a blob that another is about to delete.

A process that deletes first writes its intent and then looks for references; a process that publishes first writes its
references and then looks for intents. Whatever the order, one of them sees the other: the blob is kept, or the
publisher waits and checks again that the blob exists. The intent of a killed process expires after VALID_S.
"""

import contextlib
import secrets
import time
from collections.abc import Callable, Collection, Iterator

from pydantic import BaseModel, ValidationError

from registry.store.interface import Store

FOLDER = "leases/sweep/"
# Deletions are made in small batches and stop after half of this.
VALID_S = 60.0
POLL_S = 0.2


class _Intent(BaseModel):
    """The document of an intent; `until` is wall-clock time."""

    digests: frozenset[str]
    until: float


@contextlib.contextmanager
def announce_deletion(store: Store, digests: Collection[str]) -> Iterator[Callable[[], bool]]:
    """Write the intent to delete these blobs; gives a function that returns whether it is still valid.

    Raises StoreError.
    """
    key = f"{FOLDER}{secrets.token_hex(8)}.json"
    started = time.monotonic()
    store.put_document(key, {"digests": sorted(digests), "until": time.time() + VALID_S})
    try:
        yield lambda: time.monotonic() - started < VALID_S / 2
    finally:
        store.delete_document(key)


def wait_for_deletions(store: Store, digests: Collection[str]) -> bool:
    """Wait while an intent covers any of these blobs; return whether one did. Raises StoreError."""
    waited = False
    while any(not intent.digests.isdisjoint(digests) for intent in _intents(store)):
        waited = True
        time.sleep(POLL_S)
    return waited


def _intents(store: Store) -> Iterator[_Intent]:
    for key in store.list_documents(FOLDER):
        with contextlib.suppress(ValidationError):
            intent = _Intent.model_validate(store.get_document(key))
            if intent.until > time.time():
                yield intent
            else:
                store.delete_document(key)
