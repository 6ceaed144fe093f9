"""Memory budget shared by all JSON bodies in flight."""

from kit.errors import Busy

# Retry-After when the budget is exhausted, in seconds.
RETRY_AFTER_S = 5.0


class MemoryBudget:
    """Bytes that are available for bodies."""

    __slots__ = ("available",)

    def __init__(self, limit: int) -> None:
        self.available = limit

    def reserve(self, count: int) -> None:
        """Reserve `count` bytes. Raises Busy if there are not enough."""
        if count > self.available:
            raise Busy(
                "Too many large requests in flight (MAX_BUFFERED_MB). Try again in a moment.",
                retry_after=RETRY_AFTER_S,
            )
        self.available -= count

    def free(self, count: int) -> None:
        """Return `count` bytes to the budget."""
        self.available += count
