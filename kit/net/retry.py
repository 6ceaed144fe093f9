"""Work that is taken up again where it broke: what may pass, how long to wait, when to stop."""

import threading
import time
from dataclasses import dataclass

LOOK_EVERY_S = 0.1


class TransientError(Exception):
    """A stream did not begin, or ended too early, for a reason that may pass. `retry_after` is in seconds."""

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Cancelled(Exception):
    """The one who asked does not want it any more."""


class Stop(threading.Event):
    """Set when it was set itself, or the event that it was made from: ends a part of the work, or all of it."""

    def __init__(self, outer: threading.Event) -> None:
        super().__init__()
        self._outer = outer

    def is_set(self) -> bool:
        """Whether one of the two is."""
        return super().is_set() or self._outer.is_set()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until one of the two is set, `timeout` seconds at most; whether one is."""
        until = None if timeout is None else time.monotonic() + timeout
        while not self.is_set():
            left = LOOK_EVERY_S if until is None else until - time.monotonic()
            if left <= 0:
                return False
            super().wait(min(left, LOOK_EVERY_S))
        return True


@dataclass(frozen=True)
class RetryPolicy:
    """How often in a row something may break without bringing a byte, and the pauses between, in seconds."""

    tries: int = 5
    first_pause_s: float = 0.5
    most_s: float = 30.0


RETRY_POLICY = RetryPolicy()


def check_stop(stop: threading.Event) -> None:
    """Raise Cancelled when `stop` is set."""
    if stop.is_set():
        raise Cancelled


def pause(error: Exception, breaks: int, stop: threading.Event, patience: RetryPolicy = RETRY_POLICY) -> None:
    """Wait before try `breaks` + 1: twice as long each time, or as long as the server asked. Raises Cancelled."""
    asked = getattr(error, "retry_after", None)
    seconds = asked if asked is not None else patience.first_pause_s * 2 ** (breaks - 1)
    if stop.wait(min(seconds, patience.most_s)):
        raise Cancelled
