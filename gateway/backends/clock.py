"""The clocks of a backend, handed in so that this package reads no time itself. Pure."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime


@dataclass(frozen=True, slots=True)
class Clock:
    """`monotonic` and `wall` return seconds; `wall` counts from the Unix epoch."""

    monotonic: Callable[[], float]
    wall: Callable[[], float]

    def iso(self) -> str:
        """Return the current UTC time to the millisecond, as in `2026-01-31T12:00:00.000Z`."""
        return datetime.fromtimestamp(self.wall(), UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
