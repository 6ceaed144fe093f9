"""The memory that all JSON bodies on their way share."""

from kit.errors import Busy

# For how long a client is asked to wait, in seconds: a body is in memory until its answer begins.
RETRY_AFTER_S = 5.0


class BodyMemory:
    """How much of it is left, in bytes."""

    __slots__ = ("left",)

    def __init__(self, limit: int) -> None:
        self.left = limit

    def take(self, count: int) -> None:
        """Take `count` bytes. Raises Busy when there are not so many."""
        if count > self.left:
            raise Busy(
                "Too many large requests are on their way (MAX_BUFFERED_MB). Try again in a moment.",
                retry_after=RETRY_AFTER_S,
            )
        self.left -= count

    def give_back(self, count: int) -> None:
        """Give `count` bytes back."""
        self.left += count
