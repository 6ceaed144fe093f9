"""A backend's time to the first byte, learned as a base plus a cost per KB of work. Pure.

The line (base, per KB) is fitted to about the last twenty responses, by least squares with exponential forgetting. The
ratio by which a response exceeds it rises at once and decays slowly, as in Finagle's peak EWMA, so that one slow
response is enough to avoid a backend in trouble:
https://twitter.github.io/finagle/guide/Clients.html#power-of-two-choices-p2c-least-loaded
"""

import math

# Responses in the fit: the weight of the latest one is 1/FITTED_RESPONSES.
FITTED_RESPONSES = 20
# Seconds in which the peak decays to 1/e, and the share of it that every further response leaves at most.
PEAK_DECAY_S = 5.0
PEAK_KEEP = 0.9
# Seconds after which an estimate without new measurements begins to decay, and in which it then decays to 1/e, so that
# a backend that was slow long ago is tried again. Each trial may cost one slow response, so they are rare.
TRUSTED_S = 30.0
# Lower limit of that decay: estimates that are hours old still rank backends.
MIN_DECAY = 0.02
# Weight of the prior, a line through the origin, in responses: equally long requests determine no slope.
PRIOR_RESPONSES = 1.0


class LatencyModel:
    """One backend's latency for one sort of response. Work is in KB, time in seconds, `now` monotonic."""

    def __init__(self) -> None:
        # Whether anything has been measured.
        self.is_known = False
        self.base_s = 0.0
        self.per_kb_s = 0.0
        self._count = 0
        # Weighted means of work and time, the variance of the one and its covariance with the other.
        self._kb = self._s = self._var = self._cov = 0.0
        self._peak = 1.0
        self._at = 0.0

    def observe(self, kb: float, seconds: float, now: float) -> None:
        """Record a response: `seconds` from sending to its first byte, `kb` of work ahead of it plus its own."""
        if self.is_known:
            line = self.base_s + self.per_kb_s * kb
            ratio = seconds / line if line > 0.0 else 1.0
            peak = self._peak
            if peak > 1.0:
                # It decays with time, and by a tenth per response at least, so that many fast ones in a second count.
                peak = 1.0 + (peak - 1.0) * min(math.exp((self._at - now) / PEAK_DECAY_S), PEAK_KEEP)
            self._peak = ratio if ratio > peak else peak
        self.is_known = True
        self._at = now
        count = self._count
        if count < FITTED_RESPONSES:
            self._count = count = count + 1
        share = 1.0 / count
        kept = 1.0 - share
        more_kb, more_s = kb - self._kb, seconds - self._s
        self._kb = mean_kb = self._kb + share * more_kb
        self._s = mean_s = self._s + share * more_s
        self._var = kept * (self._var + share * more_kb * more_kb)
        self._cov = kept * (self._cov + share * more_kb * more_s)
        # Neither slope nor base is negative.
        if mean_kb > 0.0:
            prior = PRIOR_RESPONSES * share * mean_kb
            slope = (self._cov + prior * mean_s) / (self._var + prior * mean_kb)
            most = mean_s / mean_kb
            self.per_kb_s = slope = 0.0 if slope < 0.0 else most if slope > most else slope
            self.base_s = mean_s - slope * mean_kb
        else:
            self.base_s = mean_s

    def expected(self, kb: float, now: float) -> float:
        """Return the expected seconds to the first byte with `kb` of work. Valid only if `is_known`."""
        seconds = self.base_s + self.per_kb_s * kb
        peak = self._peak
        if peak > 1.0:
            seconds *= 1.0 + (peak - 1.0) * math.exp((self._at - now) / PEAK_DECAY_S)
        age = now - self._at
        return seconds if age < TRUSTED_S else seconds * max(math.exp(1.0 - age / TRUSTED_S), MIN_DECAY)
