"""Retries with exponential backoff: which errors are transient, how long to wait, when to give up."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

STOP_POLL_S = 0.1


class TransientError(Exception):
    """A failure that may pass. `retry_after` is the delay in seconds that the server asked for, if any."""

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Cancelled(Exception):
    """The stop event was set."""


class ChildStop(threading.Event):
    """A stop event that is also set while `parent` is set: stops a part of the work, or all of it."""

    def __init__(self, parent: threading.Event) -> None:
        super().__init__()
        self._parent = parent

    def is_set(self) -> bool:
        """Return whether this event or its parent is set."""
        return super().is_set() or self._parent.is_set()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait up to `timeout` seconds until this event or its parent is set; return whether one is."""
        until = None if timeout is None else time.monotonic() + timeout
        while not self.is_set():
            left = STOP_POLL_S if until is None else until - time.monotonic()
            if left <= 0:
                return False
            super().wait(min(left, STOP_POLL_S))
        return True


def check_stop(stop: threading.Event) -> None:
    """Raise Cancelled if `stop` is set."""
    if stop.is_set():
        raise Cancelled


@dataclass(frozen=True)
class RetryPolicy:
    """Maximum of failed attempts in a row without progress (None: no maximum), and the backoff between them."""

    max_attempts: int | None = 5
    initial_backoff_s: float = 0.5
    max_backoff_s: float = 30.0


RETRY_POLICY = RetryPolicy()


class Attempts:
    """The failed attempts of one operation."""

    def __init__(self, policy: RetryPolicy, stop: threading.Event) -> None:
        self._policy = policy
        self._stop = stop
        self._failed = 0

    def backoff(self, error: Exception, *, progress: bool = False) -> None:
        """Wait before the next attempt: twice as long each time, or the error's `retry_after` seconds.

        `progress` starts the count anew. Raises `error` itself after the last attempt, Cancelled.
        """
        policy = self._policy
        self._failed = 1 if progress else self._failed + 1
        if policy.max_attempts is not None and self._failed >= policy.max_attempts:
            raise error
        delay_s = getattr(error, "retry_after", None)
        if delay_s is None:
            delay_s = policy.initial_backoff_s * 2 ** min(self._failed - 1, 30)
        if self._stop.wait(min(delay_s, policy.max_backoff_s)):
            raise Cancelled


def retry(
    operation: Callable[[], T],
    policy: RetryPolicy,
    stop: threading.Event,
    *,
    on: type[Exception] = TransientError,
    before_retry: Callable[[Exception], None] = lambda _error: None,
) -> T:
    """Return what `operation` returns, retrying it on errors of the type `on`.

    `before_retry` is called with each such error, and may raise it to give up. Raises the last error, Cancelled.
    """
    attempts = Attempts(policy, stop)
    while True:
        try:
            return operation()
        except on as error:
            before_retry(error)
            attempts.backoff(error)
