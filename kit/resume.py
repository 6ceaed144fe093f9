"""Work that is taken up again where it broke: what may pass, how long to wait, when to stop."""

import threading
from dataclasses import dataclass


class Broken(Exception):
    """A stream did not begin, or ended too early, for a reason that may pass. `retry_after` is in seconds."""

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Stopped(Exception):
    """The one who asked does not want it any more."""


@dataclass(frozen=True)
class Patience:
    """How often in a row something may break without bringing a byte, and the pauses between, in seconds."""

    tries: int = 5
    first_pause_s: float = 0.5
    most_s: float = 30.0


PATIENCE = Patience()


def check_stop(stop: threading.Event) -> None:
    """Raise Stopped when `stop` is set."""
    if stop.is_set():
        raise Stopped


def pause(error: Exception, breaks: int, stop: threading.Event, patience: Patience = PATIENCE) -> None:
    """Wait before try number `breaks` + 1: twice as long each time, or as long as the server asked. Raises Stopped."""
    asked = getattr(error, "retry_after", None)
    seconds = asked if asked is not None else patience.first_pause_s * 2 ** (breaks - 1)
    if stop.wait(min(seconds, patience.most_s)):
        raise Stopped
