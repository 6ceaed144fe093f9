"""A stream that is taken up again where it broke."""

import threading
from collections.abc import Callable, Iterator


class Broken(Exception):
    """A stream did not begin, or ended too early, for a reason that may pass. `retry_after` is in seconds."""

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Stopped(Exception):
    """The one who asked does not want it any more."""


# How often in a row a stream may break without bringing a byte, and the pauses between, in seconds.
TRIES = 5
PAUSE_FIRST_S = 0.5
PAUSE_MOST_S = 30.0


def resumed(
    read: Callable[[int], Iterator[bytes]], *, start: int, size: int, stop: threading.Event, tries: int = TRIES
) -> Iterator[bytes]:
    """Yield the bytes from `start` to `size`, calling `read(offset)` again each time it breaks.

    `read` raises Broken, or simply ends early. More than `size` bytes are passed on up to the piece that is too much:
    who checks the digest must see them. Raises Broken after `tries` breaks in a row that brought nothing, and Stopped.
    """
    done, breaks = start, 0
    while done < size:
        before = done
        try:
            for chunk in read(done):
                check_stop(stop)
                done += len(chunk)
                yield chunk
                if done > size:
                    return
            if done < size:
                raise Broken(f"The stream ended after {done} of {size} bytes.")
        except Broken as error:
            breaks = 1 if done > before else breaks + 1
            if breaks >= tries:
                raise
            pause(error, breaks, stop)


def check_stop(stop: threading.Event) -> None:
    """Raise Stopped when `stop` is set."""
    if stop.is_set():
        raise Stopped


def pause(error: Broken, breaks: int, stop: threading.Event) -> None:
    """Wait before try number `breaks` + 1: twice as long each time, or as long as the server asked. Raises Stopped."""
    seconds = error.retry_after if error.retry_after is not None else PAUSE_FIRST_S * 2 ** (breaks - 1)
    if stop.wait(min(seconds, PAUSE_MOST_S)):
        raise Stopped
