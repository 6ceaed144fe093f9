"""Downloads of all files of a model, several at once, in the given order unless a file is prioritized."""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Generic, TypeVar

from kit.hub.listing import RemoteFile
from kit.net.retry import check_stop

T = TypeVar("T")

POLL_S = 0.2
REPORT_S = 10.0


class FileQueue(Generic[T]):
    """Calls `fetch` for each file, in threads. The first failure sets `stop`, which should end the others."""

    def __init__(
        self, files: Sequence[RemoteFile], fetch: Callable[[RemoteFile], T], stop: threading.Event,
        *, parallel: int, max_parallel: int = 0, abort: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        """Up to `parallel` files at once; prioritized files in addition, up to `max_parallel` in all.

        `abort` is called while `fetch` runs and `stop` is set: it ends what does not look at `stop`.
        """
        self._left = {file.path: file for file in files}
        self._fetch = fetch
        self._stop = stop
        self._parallel = parallel
        self._max_parallel = max(max_parallel, parallel)
        self._abort = abort
        self._prioritized: list[str] = []
        self._busy = 0
        self._results: list[T] = []
        self._failure: BaseException | None = None
        self._changed = threading.Condition()

    def prioritize(self, path: str) -> None:
        """Fetch this file next, if it has not begun. Safe for many threads."""
        with self._changed:
            if path in self._left and path not in self._prioritized:
                self._prioritized.append(path)
                self._changed.notify()

    def run(self, report: Callable[[int], None] = lambda _done: None, *, every_s: float = REPORT_S) -> list[T]:
        """Return the results of all files; `report` gets the number of finished files every `every_s` seconds.

        Raises the first exception of `fetch`, Cancelled.
        """
        count = min(self._max_parallel, len(self._left))
        with ThreadPoolExecutor(max(count, 1), thread_name_prefix="fetch-file") as pool:
            workers = [pool.submit(self._work) for _ in range(count)]
            report_at = time.monotonic() + every_s
            try:
                while wait(workers, min(max(report_at - time.monotonic(), 0.0), POLL_S)).not_done:
                    if self._stop.is_set():
                        self._abort()
                    elif time.monotonic() >= report_at:
                        report_at = time.monotonic() + every_s
                        report(len(self._results))
            except BaseException:
                self._stop.set()
                raise
        if self._failure is not None:
            raise self._failure
        check_stop(self._stop)
        return self._results

    def _work(self) -> None:
        while (file := self._next()) is not None:
            try:
                self._results.append(self._fetch(file))
            except BaseException as error:  # noqa: BLE001  # raised by `run` after the other threads have ended
                with self._changed:
                    self._failure = self._failure or error
                self._stop.set()
            with self._changed:
                self._busy -= 1
                self._changed.notify_all()

    def _next(self) -> RemoteFile | None:
        """Take a file off the queue; None when it is empty or stopped."""
        with self._changed:
            while self._left and not self._stop.is_set():
                if self._prioritized or self._busy < self._parallel:
                    path = self._prioritized.pop(0) if self._prioritized else next(iter(self._left))
                    self._busy += 1
                    return self._left.pop(path)
                self._changed.wait(POLL_S)
            return None
