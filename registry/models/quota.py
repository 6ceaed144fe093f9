"""Check that a download fits on the disk and within the quota, together with the downloads in progress."""

import contextlib
import threading
from collections.abc import Iterator, Mapping

from kit.units import human_bytes
from registry.store.interface import Store, StoreFull


class Quota:
    """The limit on the size of all blobs of a store. Thread-safe; reservations are not shared between processes."""

    def __init__(self, store: Store, limit: int | None) -> None:
        """`limit` in bytes; None is unlimited."""
        self._store = store
        self._limit = limit
        self._reservations: list[Mapping[str, int]] = []
        self._lock = threading.Lock()

    def check(self, name: str, size: int) -> None:
        """Raise StoreFull if `size` more bytes, for what messages call `name`, do not fit; StoreError."""
        with self.reserve(name, {"": size}):
            pass

    @contextlib.contextmanager
    def reserve(self, name: str, blobs: Mapping[str, int], *, begun: int = 0) -> Iterator[None]:
        """Reserve space for `blobs` (digest, or another unique name -> bytes) within the context.

        `begun` of these bytes are stored already, in unfinished uploads. Raises StoreFull, StoreError.
        """
        size, free = sum(blobs.values()) - begun, self._store.free_bytes()
        if free is not None and size > free:
            raise StoreFull(
                f"{self._store.where} has no space left for {name}: {human_bytes(size)} needed, {human_bytes(free)} "
                "free. Free some space, delete a model, or set STORE to another location."
            )
        with self._lock:
            self._check_quota(name, blobs)
            self._reservations.append(blobs)
        try:
            yield
        finally:
            with self._lock:
                self._reservations.remove(blobs)

    def _check_quota(self, name: str, blobs: Mapping[str, int]) -> None:
        if self._limit is None or not any(blobs.values()):
            return
        stored = {blob.digest: blob.size for blob in self._store.blobs()}
        reserved = {digest: size for reservation in self._reservations for digest, size in reservation.items()}
        needed = sum(size for digest, size in blobs.items() if digest not in stored and digest not in reserved)
        pending = sum(size for digest, size in reserved.items() if digest not in stored)
        used = sum(stored.values())
        if used + pending + needed > self._limit:
            more = f", {human_bytes(pending)} reserved by running downloads" if pending else ""
            raise StoreFull(
                f"QUOTA_GB exceeded: {name} needs {human_bytes(needed)}; of {human_bytes(self._limit)}, "
                f"{human_bytes(used)} are used{more}. Delete a model, run `registry gc`, or raise QUOTA_GB."
            )
