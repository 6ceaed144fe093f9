"""Whether an engine that failed is dead, or was given what it cannot take.

A CUDA context that broke stays broken: nothing is computed any more, and only a new process helps. A piece of work that
the engine cannot take ends nothing, however often it is sent: after each failure something is tried that should work.
"""

from collections.abc import Callable

# So many failures in a row, each with a trial that failed too, make an engine dead.
FAILURES_OF_THE_DEAD = 3


class EngineFailures:
    """Counts one engine's failures, in the one thread that runs it."""

    def __init__(self, work: str, on_death: Callable[[str], None]) -> None:
        """`on_death` is called once, with the reason, when the engine does nothing any more; `work` is what it does."""
        self._work = work
        self._on_death = on_death
        self._count = 0

    def worked(self) -> None:
        """The engine has done something."""
        self._count = 0

    def failed(self, reason: str, trial: Callable[[], object] | None) -> None:
        """The engine has failed. `trial` has it do what should work, and raises if not; None: nothing is known to."""
        if trial is not None:
            try:
                trial()
            except Exception as error:  # noqa: BLE001  # told once it is certain; the failure itself has been logged
                reason = str(error)
            else:
                self._count = 0
                return
        self._count += 1
        if self._count == FAILURES_OF_THE_DEAD:
            self._on_death(f"the engine fails on every {self._work}: {reason}")
