"""Human-readable sizes and durations, and the timestamp format of documents."""

import datetime
import math


def human_bytes(count: float) -> str:
    """Format `count` bytes in decimal units: 269.1 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError("unreachable")


def human_seconds(seconds: float) -> str:
    """Format a duration, rounded up: 20 s, 3 min, 1 h 5 min."""
    whole = math.ceil(seconds)
    if whole < 100:
        return f"{whole} s"
    minutes = math.ceil(whole / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def utc_now(timespec: str = "milliseconds") -> str:
    """The current time as documents store it: ISO 8601 in UTC."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec=timespec).replace("+00:00", "Z")
