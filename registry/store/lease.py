"""One at a time, over all processes and machines that share a store: a lease that is kept in the store itself.

`leases/<what>/<number>.json`: the highest number counts. Who takes over a lease that ran out or was given back creates
the next number, which only one can. A holder that is killed is in nobody's way for longer than HELD_S.
"""

import contextlib
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator

from pydantic import BaseModel, ValidationError

from registry.store.interface import Store, StoreError

# What removes blobs, and what brings in so many at once that the first are no longer young when the last arrive.
CHANGES = "changes"
HELD_S = 300.0
RENEW_S = 60.0


class LeaseTaken(StoreError):
    """Somebody else is at it."""


class _Held(BaseModel):
    """What a lease's document holds; times are of the wall clock, which machines share well enough for minutes."""

    holder: str
    token: str
    until: float


@contextlib.contextmanager
def lease(store: Store, what: str, task: str, clock: Callable[[], float] = time.time) -> Iterator[Callable[[], None]]:
    """Hold the lease on `what` for `task`; gives what is to be called now and then, to go on holding it.

    Raises LeaseTaken when another holds it, or took it over because this one was silent for too long; StoreError.
    """
    folder = f"leases/{what}/"
    number, current = _highest(store, folder)
    if current is not None and current.until > clock():
        raise LeaseTaken(
            f"{task} has to wait: another one is at work in {store.where}, {current.holder}. Try again when it has "
            f"ended; if it was killed, in {current.until - clock():.0f} s."
        )
    mine = _Held(holder=f"{task} of {socket.gethostname()}, process {os.getpid()}", token=secrets.token_hex(8), until=0)
    key = f"{folder}{number + 1:012}.json"
    renewed = clock()
    if not store.create_document(key, mine.model_copy(update={"until": renewed + HELD_S}).model_dump()):
        raise LeaseTaken(f"{task} has to wait: another one began in {store.where} at this moment. Try again.")
    for old in store.list_documents(folder):
        if old < key:
            store.delete_document(old)

    def renew() -> None:
        nonlocal renewed
        if clock() - renewed < RENEW_S:
            return
        _number, held = _highest(store, folder)
        if held is None or held.token != mine.token or clock() - renewed > HELD_S:
            raise LeaseTaken(f"{task} was silent for too long, and another one began. Run it again.")
        renewed = clock()
        store.put_document(key, mine.model_copy(update={"until": renewed + HELD_S}).model_dump())

    try:
        yield renew
    finally:
        # Given back, not removed: the numbers go on, so that two who saw the same one cannot both be next.
        if clock() - renewed < HELD_S:
            store.put_document(key, mine.model_dump())


def _highest(store: Store, folder: str) -> tuple[int, _Held | None]:
    """The lease that counts; one that cannot be read counts as given back."""
    keys = store.list_documents(folder)
    if not keys:
        return 0, None
    number = int(keys[-1].removeprefix(folder).removesuffix(".json"))
    try:
        return number, _Held.model_validate(store.get_document(keys[-1]))
    except ValidationError:
        return number, None
