"""The progress of a job: bytes, files, speed, time left. Updated by download threads, read by routes."""

import threading
import time
from collections import deque
from collections.abc import Mapping

from kit.units import human_bytes, human_seconds

_WINDOW_S = 10.0


class Progress:
    """The counters of one job. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._bytes_done = self._bytes_total = self._files_done = self._files_total = 0
        # (time, bytes fetched): the speed covers the last seconds and excludes bytes that were stored already.
        self._fetched = 0
        self._samples: deque[tuple[float, int]] = deque([(time.monotonic(), 0)])

    def expect(self, files: int, size: int) -> None:
        """Set the totals and reset the counters."""
        with self._lock:
            self._files_total, self._bytes_total = files, size
            self._files_done = self._bytes_done = 0

    def advance(self, count: int, *, fetched: bool = True) -> None:
        """Add `count` bytes; a negative number subtracts bytes that have to be fetched again."""
        now = time.monotonic()
        with self._lock:
            self._bytes_done += count
            self._fetched += count if fetched else 0
            if now - self._samples[-1][0] > 0.2:
                self._samples.append((now, self._fetched))
                while now - self._samples[0][0] > _WINDOW_S:
                    self._samples.popleft()

    def file_done(self) -> None:
        """Count a complete file."""
        with self._lock:
            self._files_done += 1

    @property
    def share(self) -> float:
        """The share of the bytes that is done, from 0 to 1; 0 while the total is unknown."""
        with self._lock:
            return min(self._bytes_done / self._bytes_total, 1.0) if self._bytes_total else 0.0

    def summary(self) -> str:
        """The progress in words; see `progress_summary`."""
        return progress_summary(self.as_json())

    def as_json(self) -> dict[str, float | int | None]:
        """The `progress` object of a model."""
        with self._lock:
            began, first = self._samples[0]
            seconds = max(time.monotonic() - began, 0.001)
            rate = max(self._fetched - first, 0) / seconds
            left = self._bytes_total - self._bytes_done
            return {
                "bytes_done": self._bytes_done,
                "bytes_total": self._bytes_total,
                "files_done": self._files_done,
                "files_total": self._files_total,
                "bytes_per_second": round(rate),
                "eta_seconds": round(left / rate, 1)
                if rate and left > 0
                else (0.0 if self._bytes_total and left <= 0 else None),
            }


def progress_summary(progress: Mapping[str, float | int | None]) -> str:
    """Format the known parts of `35 % of 988.1 MB, 12.0 MB/s, 20 s left`; empty if the total is unknown."""
    done, total = progress["bytes_done"] or 0, progress["bytes_total"]
    rate, left = progress["bytes_per_second"], progress["eta_seconds"]
    if not total:
        return ""
    parts = [f"{int(min(done / total, 1.0) * 100)} % of {human_bytes(total)}"]
    parts += [f"{human_bytes(rate)}/s"] if rate else []
    parts += [f"{human_seconds(left)} left"] if left else []
    return ", ".join(parts)
