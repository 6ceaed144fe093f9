"""Human-readable durations, and the timestamp format of documents."""

import datetime
import math


def human_seconds(seconds: float) -> str:
    """Format a duration, rounded up: 20 s, 3 min, 1 h 5 min."""
    whole = math.ceil(seconds)
    if whole < 100:
        return f"{whole} s"
    minutes = math.ceil(whole / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def utc_now() -> str:
    """The current time as documents store it: ISO 8601 in UTC, milliseconds."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
