"""The relay's clock, and the deadline that the steps of a request share."""

import time

# The one clock of the data plane; all times in this package are its seconds.
now = time.monotonic

NEVER = float("inf")


class Deadline:
    """When a client connection times out next, `NEVER` while nothing is awaited.

    The connection, forwarding, attempts and the stream passthrough all move the same object;
    `RelayContext.watch_deadlines` compares `at` with the clock.
    """

    __slots__ = ("at",)

    def __init__(self) -> None:
        self.at = NEVER

    def start(self, seconds: float) -> None:
        """Expire `seconds` from now."""
        self.at = now() + seconds
