"""Nobody publishes what another process is about to delete: what is swept is announced in the store beforehand.

Who deletes announces first and looks for roots then; who publishes makes the roots first and looks for announcements
then. Whatever the order of the two, one of them sees the other: the blob is spared, or the publisher waits and looks
once more whether it is there. An announcement whose maker was killed holds nobody up for longer than GOOD_S.
"""

import contextlib
import secrets
import time
from collections.abc import Callable, Collection, Iterator

from pydantic import BaseModel, ValidationError

from registry.store.interface import Store

FOLDER = "leases/sweep/"
# A sweep deletes a few blobs only, and gives up when that takes half of this.
GOOD_S = 60.0
LOOK_EVERY_S = 0.2


class _Sweep(BaseModel):
    """What is announced."""

    digests: frozenset[str]
    until: float


@contextlib.contextmanager
def announced(store: Store, digests: Collection[str]) -> Iterator[Callable[[], bool]]:
    """Tell whoever publishes that these may be deleted meanwhile; gives whether the announcement still holds.

    Raises StoreError.
    """
    key = f"{FOLDER}{secrets.token_hex(8)}.json"
    began = time.monotonic()
    store.put_document(key, {"digests": sorted(digests), "until": time.time() + GOOD_S})
    try:
        yield lambda: time.monotonic() - began < GOOD_S / 2
    finally:
        store.delete_document(key)


def wait_for_sweeps(store: Store, digests: Collection[str]) -> bool:
    """Wait until nobody deletes any of these; whether anybody did. Raises StoreError."""
    waited = False
    while any(not sweep.digests.isdisjoint(digests) for sweep in _going_on(store)):
        waited = True
        time.sleep(LOOK_EVERY_S)
    return waited


def _going_on(store: Store) -> Iterator[_Sweep]:
    for key in store.list_documents(FOLDER):
        with contextlib.suppress(ValidationError):
            sweep = _Sweep.model_validate(store.get_document(key))
            if sweep.until > time.time():
                yield sweep
            else:
                store.delete_document(key)
