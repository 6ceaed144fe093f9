"""Whether what is wanted has room: on the disk, and within the quota, together with what is promised already."""

import contextlib
import threading
from collections.abc import Iterator, Mapping

from kit.units import human_bytes
from registry.store.interface import Store, StoreFull


class Room:
    """The room of one store. Safe for many threads; of other processes it sees what they have stored."""

    def __init__(self, store: Store, quota: int | None) -> None:
        """`quota`: the most bytes that all blobs together may take."""
        self._store = store
        self._quota = quota
        self._promised: list[Mapping[str, int]] = []
        self._lock = threading.Lock()

    def check(self, what: str, needed: int, *, begun: int = 0) -> None:
        """Refuse what has no room before a byte of it is fetched. Raises StoreFull, StoreError.

        `begun` of the `needed` bytes lie in the store already, in uploads that were not finished.
        """
        self._check_disk(what, needed - begun)
        with self._lock:
            self._check_quota(what, {"": needed})

    @contextlib.contextmanager
    def promised(self, what: str, blobs: Mapping[str, int], *, begun: int = 0) -> Iterator[None]:
        """Keep room for `blobs` (digest, or a name that is theirs alone -> bytes) meanwhile. Raises as `check`."""
        self._check_disk(what, sum(blobs.values()) - begun)
        with self._lock:
            self._check_quota(what, blobs)
            self._promised.append(blobs)
        try:
            yield
        finally:
            with self._lock:
                self._promised.remove(blobs)

    def _check_disk(self, what: str, needed: int) -> None:
        free = self._store.free_bytes()
        if free is not None and needed > free:
            raise StoreFull(
                f"{self._store.where} has no room: {what} needs {human_bytes(needed)}, {human_bytes(free)} are free. "
                "Free some space, delete a model, or set STORE to another place."
            )

    def _check_quota(self, what: str, blobs: Mapping[str, int]) -> None:
        if self._quota is None or not any(blobs.values()):
            return
        stored = {blob.digest: blob.size for blob in self._store.blobs()}
        coming = {digest: size for promised in self._promised for digest, size in promised.items()}
        needed = sum(size for digest, size in blobs.items() if digest not in stored and digest not in coming)
        arriving = sum(size for digest, size in coming.items() if digest not in stored)
        used = sum(stored.values())
        if used + arriving + needed > self._quota:
            more = f", {human_bytes(arriving)} more go to downloads that run" if arriving else ""
            raise StoreFull(
                f"{what} needs {human_bytes(needed)} more, and of the {human_bytes(self._quota)} of QUOTA_GB "
                f"{human_bytes(used)} are taken{more}. Delete a model, run `registry gc`, or raise QUOTA_GB."
            )
