"""Detection of engines that have failed for good, as opposed to inputs that make one call fail.

A broken CUDA context stays broken: only a new process helps. An input that the engine cannot process must not end the
service, however often it is sent: after each failure the engine is tried with an input that should work.
"""

from collections.abc import Callable

# Consecutive failures, each with a failed trial, after which the engine counts as failed for good.
MAX_FAILURES = 3


class EngineFailures:
    """Failure counter of one engine, used from the thread that runs it."""

    def __init__(self, work: str, on_failed: Callable[[str], None]) -> None:
        """`work` names the engine's unit of work; `on_failed` is called once, with the reason."""
        self._work = work
        self._on_failed = on_failed
        self._count = 0

    def succeeded(self) -> None:
        """Record a success."""
        self._count = 0

    def failed(self, reason: str, trial: Callable[[], object] | None) -> None:
        """Record a failure. `trial` runs an input that should work, and raises if it fails; None if none is known."""
        if trial is not None:
            try:
                trial()
            except Exception as error:  # noqa: BLE001  # reported once it is certain; the failure itself has been logged
                reason = str(error)
            else:
                self._count = 0
                return
        self._count += 1
        if self._count == MAX_FAILURES:
            self._on_failed(f"the engine fails on every {self._work}: {reason}")
