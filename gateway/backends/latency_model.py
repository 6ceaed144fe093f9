"""How long a backend takes to the first byte, learnt as a base and a price per KB of work. Pure.

The line (base, per KB) follows the last twenty answers or so, by least squares with exponential forgetting. What an
answer took beyond it goes up at once and down slowly, as in Finagle's peak EWMA, so that a backend in trouble is
avoided after one slow answer: https://twitter.github.io/finagle/guide/Clients.html#power-of-two-choices-p2c-least-loaded
"""

import math

# How many answers the line follows: the latest has a weight of one in so many, once there are as many.
REMEMBERED = 20
# Seconds in which what was beyond the line falls to 1/e.
PEAK_S = 5.0
# What every further answer leaves of it at most.
PEAK_KEEP = 0.9
# Seconds after which a line that nothing has confirmed begins to sink, and in which it then falls to 1/e: a backend
# that was slow long ago is asked again. Each such question may cost one slow answer, so they are rare.
TRUSTED_S = 30.0
# How far it sinks: what all have been silent about for hours still tells them apart.
MIN_LEFT = 0.02
# How much the fit leans to a line through the origin, in answers: of equally long requests no line can be told.
LEAN = 1.0


class LatencyModel:
    """One backend's pace for one sort of answer. Work is in KB, time in seconds, `now` monotonic."""

    __slots__ = ("_at", "_count", "_cov", "_kb", "_peak", "_s", "_var", "base_s", "known", "per_kb_s")

    def __init__(self) -> None:
        # Whether anything has been measured.
        self.known = False
        self.base_s = 0.0
        self.per_kb_s = 0.0
        self._count = 0
        # Weighted means of work and time, the variance of the one and its covariance with the other.
        self._kb = self._s = self._var = self._cov = 0.0
        self._peak = 1.0
        self._at = 0.0

    def observe(self, kb: float, seconds: float, now: float) -> None:
        """Take in one answer: its first byte came `seconds` after sending, with `kb` of work before it, its own too."""
        if self.known:
            line = self.base_s + self.per_kb_s * kb
            ratio = seconds / line if line > 0.0 else 1.0
            peak = self._peak
            # What was seen before counts for less with every second, and for a tenth less at least: or many fast
            # answers within a second would not count.
            weight = min(math.exp((self._at - now) / PEAK_S), PEAK_KEEP) if peak > 1.0 else 0.0
            self._peak = max(ratio, 1.0 + (peak - 1.0) * weight)
        self.known = True
        self._at = now
        if self._count < REMEMBERED:
            self._count += 1
        share = 1.0 / self._count
        kept = 1.0 - share
        more_kb, more_s = kb - self._kb, seconds - self._s
        self._kb = mean_kb = self._kb + share * more_kb
        self._s = mean_s = self._s + share * more_s
        self._var = kept * (self._var + share * more_kb * more_kb)
        self._cov = kept * (self._cov + share * more_kb * more_s)
        # Neither a price nor a base is negative.
        if mean_kb > 0.0:
            lean = LEAN * share * mean_kb
            slope = (self._cov + lean * mean_s) / (self._var + lean * mean_kb)
            most = mean_s / mean_kb
            self.per_kb_s = slope = 0.0 if slope < 0.0 else most if slope > most else slope
            self.base_s = mean_s - slope * mean_kb
        else:
            self.base_s = mean_s

    def expected(self, kb: float, now: float) -> float:
        """The seconds to the first byte with `kb` of work before it. Only where `known`."""
        seconds = (self.base_s + self.per_kb_s * kb) * self._peak_at(now)
        age = now - self._at
        return seconds if age < TRUSTED_S else seconds * max(math.exp(1.0 - age / TRUSTED_S), MIN_LEFT)

    def _peak_at(self, now: float) -> float:
        peak = self._peak
        if peak <= 1.0:
            return 1.0
        return 1.0 + (peak - 1.0) * math.exp((self._at - now) / PEAK_S)
