"""How long a backend takes, remembered so that a bad moment counts at once and is forgiven slowly."""

import math

# Seconds in which the weight of what was measured falls to 1/e.
DECAY_S = 10.0


class PeakEwma:
    """A peak-sensitive moving average of durations in seconds, after Finagle's: up at once, down exponentially.

    Source: https://twitter.github.io/finagle/guide/Clients.html#power-of-two-choices-p2c-least-loaded
    """

    __slots__ = ("_at", "_value", "last")

    def __init__(self) -> None:
        self._value = 0.0
        self._at = 0.0
        self.last: float | None = None

    def observe(self, seconds: float, now: float) -> None:
        """Take in one measured duration; `now` is a monotonic time."""
        self.last = seconds
        if self._at and seconds < self._value:
            weight = math.exp((self._at - now) / DECAY_S)
            # At least a tenth of every sample counts, or a thousand fast answers within a second would not.
            weight = min(weight, 0.9)
            self._value = self._value * weight + seconds * (1 - weight)
        else:
            self._value = seconds
        self._at = now

    def expected(self, now: float) -> float | None:
        """The expected duration in seconds, or None before the first sample.

        An estimate that nothing has confirmed for a while sinks, so that a backend that was slow once is asked again.
        """
        if not self._at:
            return None
        age = now - self._at
        return self._value if age < DECAY_S else self._value * math.exp((DECAY_S - age) / DECAY_S)
