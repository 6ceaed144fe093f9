"""How fast bytes may come, over all downloads together."""

import threading
import time

from kit.net.retry import Cancelled


class BandwidthLimit:
    """Holds up who is faster than `bytes_per_second`; None holds up nobody. Safe for many threads."""

    def __init__(self, bytes_per_second: float | None) -> None:
        self._rate = bytes_per_second
        self._free_at = 0.0
        self._lock = threading.Lock()

    def wait(self, count: int, stop: threading.Event) -> None:
        """`count` bytes came: wait until they may have come. Raises Cancelled."""
        if self._rate is None:
            return
        with self._lock:
            now = time.monotonic()
            self._free_at = max(self._free_at, now) + count / self._rate
            seconds = self._free_at - now
        if stop.wait(seconds):
            raise Cancelled
