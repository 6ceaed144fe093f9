"""How long a backend may be silent before its requests go elsewhere: learned from what it did before. Pure.

A deadline is a multiple of what was learned, never less than a floor (a fast backend may stumble) and never more than
a cap, which also holds while nothing has been learned. All durations are in seconds.
"""

import math

# How many times longer than expected a first byte may take, and than the longest pause a next one.
FIRST_FACTOR = 8.0
NEXT_FACTOR = 8.0
# A backend that is sending to others is not hung, only full: then a first byte may take so many times longer.
WORKING_FACTOR = 4.0
# How recently it must have sent something to count as working, in seconds.
WORKING_S = 5.0
# A deadline that is noticed so many seconds too late says nothing of the backend: it was this process that was held up,
# and has not read yet what came meanwhile. It is given time once more; once, or a busy process would bear anything.
LATE_S = 0.5
# How fast the longest pause is forgotten: in so many streams it falls to 1/e.
FORGET_STREAMS = 50.0


def first_byte_s(expected: float | None, floor: float, cap: float, *, working: bool = False) -> float:
    """The time to the first byte that is allowed where `expected` is what routing expects, None where it knows nothing.

    `working` says whether the backend has sent something to anybody of late.
    """
    if expected is None:
        return cap
    return min(max(expected * FIRST_FACTOR, floor) * (WORKING_FACTOR if working else 1.0), cap)


def next_byte_s(pause: float | None, floor: float, cap: float) -> float:
    """The silence that is allowed in a stream, where `pause` is the longest that its backend's streams had."""
    return cap if pause is None else min(max(pause * NEXT_FACTOR, floor), cap)


def loop_lagged(waited_s: float, limit_s: float) -> bool:
    """Whether this process came so late to the end of a limit that it cannot tell whether the limit was kept."""
    return waited_s > limit_s + LATE_S


class InterTokenGap:
    """The longest pause in the streams of one backend: up at once, down slowly."""

    __slots__ = ("longest",)

    def __init__(self) -> None:
        # None before the first stream has ended.
        self.longest: float | None = None

    def observe(self, longest: float) -> None:
        """A stream has ended well, whose longest pause this was."""
        known = self.longest
        if known is None or longest >= known:
            self.longest = longest
        else:
            self.longest = longest + (known - longest) * math.exp(-1.0 / FORGET_STREAMS)
