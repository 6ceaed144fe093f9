"""A lease in the store: mutual exclusion between all processes and machines that share it.

`leases/<what>/<number>.json`: the highest number is the valid one. An expired or released lease is acquired by creating
the next number, which only one process can. The lease of a killed process expires after LEASE_S.
"""

import contextlib
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator

from pydantic import BaseModel, ValidationError

from registry.store.interface import Store, StoreError

# Held by deletions, and by imports that last longer than garbage collection spares unreferenced blobs.
CHANGES = "changes"
LEASE_S = 300.0
RENEW_S = 60.0


class LeaseTaken(StoreError):
    """Another process holds the lease."""


class _Lease(BaseModel):
    """The document of a lease. `until` is wall-clock time, which is exact enough for minutes."""

    holder: str
    token: str
    until: float


@contextlib.contextmanager
def lease(store: Store, what: str, task: str, clock: Callable[[], float] = time.time) -> Iterator[Callable[[], None]]:
    """Hold the lease on `what` for `task`; gives a function that renews it, to be called regularly.

    Raises LeaseTaken if another process holds it, or acquired it after it expired; StoreError.
    """
    folder = f"leases/{what}/"
    number, current = _highest(store, folder)
    if current is not None and current.until > clock():
        raise LeaseTaken(
            f"{task} cannot start: {current.holder} holds the lease on {store.where}. Try again when it has ended; if "
            f"it was killed, in {current.until - clock():.0f} s."
        )
    mine = _Lease(
        holder=f"{task} of {socket.gethostname()}, process {os.getpid()}", token=secrets.token_hex(8), until=0
    )
    key = f"{folder}{number + 1:012}.json"
    renewed = clock()
    if not store.create_document(key, mine.model_copy(update={"until": renewed + LEASE_S}).model_dump()):
        raise LeaseTaken(f"{task} cannot start: another process just took the lease on {store.where}. Try again.")
    for old in store.list_documents(folder):
        if old < key:
            store.delete_document(old)

    def renew() -> None:
        nonlocal renewed
        if clock() - renewed < RENEW_S:
            return
        _number, held = _highest(store, folder)
        if held is None or held.token != mine.token or clock() - renewed > LEASE_S:
            raise LeaseTaken(f"{task} lost its lease: it was not renewed for {LEASE_S:.0f} s. Run it again.")
        renewed = clock()
        store.put_document(key, mine.model_copy(update={"until": renewed + LEASE_S}).model_dump())

    try:
        yield renew
    finally:
        # Released, not deleted: numbers keep growing, so that two processes that saw the same one cannot both win.
        if clock() - renewed < LEASE_S:
            store.put_document(key, mine.model_dump())


def _highest(store: Store, folder: str) -> tuple[int, _Lease | None]:
    """The valid lease and its number; None for one that is missing or unreadable."""
    keys = store.list_documents(folder)
    if not keys:
        return 0, None
    number = int(keys[-1].removeprefix(folder).removesuffix(".json"))
    try:
        return number, _Lease.model_validate(store.get_document(keys[-1]))
    except ValidationError:
        return number, None
