"""Retries: backoff, Retry-After, progress, exhaustion, cancellation."""

import threading

import pytest

from kit.net.retry import Attempts, Cancelled, ChildStop, RetryPolicy, TransientError, retry

POLICY = RetryPolicy(max_attempts=4, initial_backoff_s=1.0, max_backoff_s=3.0)


class RecordedStop(threading.Event):
    """A stop event that records the waits instead of sleeping."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[float | None] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.waits.append(timeout)
        return self.is_set()


class Failing:
    """An operation that raises the given errors, then returns."""

    def __init__(self, *errors: Exception) -> None:
        self._errors = list(errors)

    def __call__(self) -> str:
        if self._errors:
            raise self._errors.pop(0)
        return "done"


def test_backoff_doubles_up_to_the_maximum() -> None:
    stop = RecordedStop()
    assert retry(Failing(*[TransientError("x")] * 3), POLICY, stop) == "done"
    assert stop.waits == [1.0, 2.0, 3.0]


def test_retry_after_replaces_the_backoff() -> None:
    """Up to the maximum too."""
    stop = RecordedStop()
    errors = [TransientError("x", retry_after=0.0), TransientError("x", retry_after=60.0)]
    assert retry(Failing(*errors), POLICY, stop) == "done"
    assert stop.waits == [0.0, 3.0]


def test_last_error_is_raised() -> None:
    last = TransientError("last")
    with pytest.raises(TransientError) as caught:
        retry(Failing(*[TransientError("x")] * 3, last), POLICY, RecordedStop())
    assert caught.value is last


def test_other_errors_are_not_retried() -> None:
    stop = RecordedStop()
    with pytest.raises(ValueError, match="x"):
        retry(Failing(ValueError("x")), POLICY, stop)
    assert stop.waits == []


def test_before_retry_may_give_up() -> None:
    def give_up(error: Exception) -> None:
        raise error

    with pytest.raises(TransientError):
        retry(Failing(TransientError("x")), POLICY, RecordedStop(), before_retry=give_up)


def test_progress_starts_the_count_anew() -> None:
    stop = RecordedStop()
    attempts = Attempts(POLICY, stop)
    for progress in (False, False, True, False):
        attempts.backoff(TransientError("x"), progress=progress)
    assert stop.waits == [1.0, 2.0, 1.0, 2.0]


def test_unlimited_attempts() -> None:
    stop = RecordedStop()
    assert retry(Failing(*[TransientError("x")] * 2000), RetryPolicy(max_attempts=None), stop) == "done"
    assert stop.waits[-1] == RetryPolicy().max_backoff_s


def test_stop_ends_the_backoff() -> None:
    parent = threading.Event()
    stop = ChildStop(parent)
    assert not stop.wait(0.001)
    parent.set()
    with pytest.raises(Cancelled):
        retry(Failing(TransientError("x")), RetryPolicy(initial_backoff_s=60.0, max_backoff_s=60.0), stop)
