"""All files of a model, several at once: in the order given, but first what somebody waits for."""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Generic, TypeVar

from kit.net.retry import check_stop
from registry.hub.client import SourceFile

T = TypeVar("T")

LOOK_EVERY_S = 0.2


class Crew(Generic[T]):
    """Brings each file by `bring`, in threads. The first failure sets `stop`, which ends the others."""

    def __init__(
        self, files: Sequence[SourceFile], bring: Callable[[SourceFile], T], stop: threading.Event,
        *, parallel: int, most: int,
    ) -> None:  # fmt: skip
        """`parallel` files at once; those that somebody waits for come on top, up to `most` in all."""
        self._left = {file.path: file for file in files}
        self._bring = bring
        self._stop = stop
        self._parallel = parallel
        self._most = max(most, parallel)
        self._wanted: list[str] = []
        self._busy = 0
        self._brought: list[T] = []
        self._failure: Exception | None = None
        self._changed = threading.Condition()

    def want(self, path: str) -> None:
        """Somebody waits for this file: it is the next. Safe for many threads."""
        with self._changed:
            if path in self._left and path not in self._wanted:
                self._wanted.append(path)
                self._changed.notify()

    def run(self, tell: Callable[[int], None], *, every_s: float) -> list[T]:
        """What `bring` gave, of all files. `tell` hears now and then how many are done.

        Raises what `bring` raised first, Cancelled.
        """
        count = min(self._most, len(self._left))
        with ThreadPoolExecutor(max(count, 1), thread_name_prefix="bring") as pool:
            workers = [pool.submit(self._work) for _ in range(count)]
            tell_at = time.monotonic() + every_s
            while wait(workers, max(tell_at - time.monotonic(), 0.0)).not_done:
                tell_at = time.monotonic() + every_s
                if self._failure is None:
                    tell(len(self._brought))
        if self._failure is not None:
            raise self._failure
        check_stop(self._stop)
        return self._brought

    def _work(self) -> None:
        while (file := self._next()) is not None:
            try:
                brought = self._bring(file)
            except Exception as error:  # noqa: BLE001  # raised by `run`, when the other threads have ended
                with self._changed:
                    self._failure = self._failure or error
                self._stop.set()
            else:
                with self._changed:
                    self._brought.append(brought)
            with self._changed:
                self._busy -= 1
                self._changed.notify_all()

    def _next(self) -> SourceFile | None:
        """The file to bring now; None when none is left, or it is over."""
        with self._changed:
            while self._left and not self._stop.is_set():
                if self._wanted or self._busy < self._parallel:
                    path = self._wanted.pop(0) if self._wanted else next(iter(self._left))
                    self._busy += 1
                    return self._left.pop(path)
                self._changed.wait(LOOK_EVERY_S)
            return None
