"""Bandwidth limit over all downloads together."""

import threading
import time

from kit.net.retry import Cancelled


class BandwidthLimit:
    """Delays receivers to at most `bytes_per_second` (None: no limit). Safe for many threads."""

    def __init__(self, bytes_per_second: float | None) -> None:
        self._rate = bytes_per_second
        self._free_at = 0.0
        self._lock = threading.Lock()

    def wait(self, count: int, stop: threading.Event) -> None:
        """Account for `count` received bytes: wait until the limit permits them. Raises Cancelled."""
        if self._rate is None:
            return
        with self._lock:
            now = time.monotonic()
            self._free_at = max(self._free_at, now) + count / self._rate
            seconds = self._free_at - now
        if stop.wait(seconds):
            raise Cancelled
