"""Timeouts learned from a backend's past latency. Pure.

A timeout is a multiple of the expected latency, at least a floor (a fast backend may stall for a moment) and at most a
cap, which also applies while nothing has been measured. All durations are in seconds.
"""

import math

# Timeouts as multiples of the expected time to the first byte and of the longest gap between bytes.
FIRST_BYTE_FACTOR = 8.0
NEXT_BYTE_FACTOR = 8.0
# Further factor for the first byte while the backend sends to other clients: it is not hung but loaded.
WORKING_FACTOR = 4.0
# How recently it must have sent something to count as working, in seconds.
WORKING_S = 5.0
# If our event loop lagged by more than this, a timeout is inconclusive and is extended, once: otherwise a busy process
# would extend it for ever.
LATE_S = 0.5
# Streams after which the longest gap has decayed to 1/e.
GAP_DECAY_STREAMS = 50.0


def first_byte_s(expected: float | None, floor: float, cap: float, *, working: bool = False) -> float:
    """Return the timeout for the first byte; `expected` is the expected latency, None if unknown.

    `working` says whether the backend has recently sent something to any client.
    """
    if expected is None:
        return cap
    return min(max(expected * FIRST_BYTE_FACTOR, floor) * (WORKING_FACTOR if working else 1.0), cap)


def next_byte_s(longest_gap: float | None, floor: float, cap: float) -> float:
    """Return the timeout for the next byte of a stream; `longest_gap` is that of the backend's streams so far."""
    return cap if longest_gap is None else min(max(longest_gap * NEXT_BYTE_FACTOR, floor), cap)


def loop_lagged(waited_s: float, limit_s: float) -> bool:
    """Whether our event loop noticed the end of a limit so late that the timeout is inconclusive."""
    return waited_s > limit_s + LATE_S


class InterTokenGap:
    """The longest gap between bytes in one backend's streams: rises at once, decays slowly."""

    def __init__(self) -> None:
        # None until the first stream has ended.
        self.longest: float | None = None

    def observe(self, longest: float) -> None:
        """Record the longest gap of a completed stream."""
        known = self.longest
        if known is None or longest >= known:
            self.longest = longest
        else:
            self.longest = longest + (known - longest) * math.exp(-1.0 / GAP_DECAY_STREAMS)
