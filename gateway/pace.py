"""How long a backend takes to the first byte, learnt as a base and a price per KB of work. Pure.

The line (base, per KB) follows the last ten answers or so, by least squares with exponential forgetting. What an answer
took beyond it goes up at once and down slowly, as in Finagle's peak EWMA, so that a backend in trouble is avoided after
one slow answer: https://twitter.github.io/finagle/guide/Clients.html#power-of-two-choices-p2c-least-loaded
"""

import math

# What every further answer leaves of the weight of the earlier ones.
KEEP = 0.9
# Seconds in which what was beyond the line falls to 1/e.
PEAK_S = 10.0
# Seconds after which a line that nothing has confirmed begins to sink, and in which it then falls to 1/e: a backend
# that was slow long ago is asked again. Each such question may cost one slow answer, so they are rare.
TRUSTED_S = 30.0
# How much the fit leans to a line through the origin, in answers: of equally long requests no line can be told.
LEAN = 1.0


class Pace:
    """One backend's pace for one sort of answer. Work is in KB, time in seconds, `now` monotonic."""

    __slots__ = ("_at", "_count", "_peak", "_t", "_x", "_xt", "_xx", "base_s", "per_kb_s")

    def __init__(self) -> None:
        self._count = self._x = self._t = self._xx = self._xt = 0.0
        self._peak = 1.0
        self._at = 0.0
        self.base_s = 0.0
        self.per_kb_s = 0.0

    @property
    def known(self) -> bool:
        """Whether anything has been measured."""
        return self._count > 0.0

    def observe(self, kb: float, seconds: float, now: float) -> None:
        """Take in one answer: its first byte came `seconds` after sending, with `kb` of work before it, its own too."""
        if self._count:
            line = self.base_s + self.per_kb_s * kb
            ratio = seconds / line if line > 0.0 else 1.0
            if ratio >= self._peak_at(now):
                self._peak = ratio
            else:
                # A tenth at least of every answer counts, or many fast ones within a second would not.
                weight = min(math.exp((self._at - now) / PEAK_S), KEEP)
                self._peak = max(self._peak * weight + ratio * (1.0 - weight), 1.0)
        self._count = self._count * KEEP + 1.0
        self._x = self._x * KEEP + kb
        self._t = self._t * KEEP + seconds
        self._xx = self._xx * KEEP + kb * kb
        self._xt = self._xt * KEEP + kb * seconds
        self._at = now
        self._fit()

    def _fit(self) -> None:
        count, mean_x, mean_t = self._count, self._x / self._count, self._t / self._count
        through_origin = mean_t / mean_x if mean_x else 0.0
        lean = LEAN * mean_x * mean_x
        spread = self._xx - count * mean_x * mean_x
        slope = (self._xt - count * mean_x * mean_t + lean * through_origin) / (spread + lean) if lean else 0.0
        # Neither a price nor a base is negative.
        self.per_kb_s = min(max(slope, 0.0), through_origin)
        self.base_s = mean_t - self.per_kb_s * mean_x

    def expected(self, kb: float, now: float) -> float:
        """The seconds to the first byte with `kb` of work before it. Only where `known`."""
        seconds = (self.base_s + self.per_kb_s * kb) * self._peak_at(now)
        age = now - self._at
        return seconds if age < TRUSTED_S else seconds * math.exp(1.0 - age / TRUSTED_S)

    def _peak_at(self, now: float) -> float:
        peak = self._peak
        if peak <= 1.0:
            return 1.0
        return 1.0 + (peak - 1.0) * math.exp((self._at - now) / PEAK_S)
