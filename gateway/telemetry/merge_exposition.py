"""Prometheus' text of several workers as one: what is counted is added up. Pure.

All workers run the same code, so the same series is written in the same way by each, labels in the same order. Format:
https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format
"""

from collections.abc import Iterable

# Gauges of which each worker has its own part. Any other gauge tells what the worker that is asked sees.
ADDED_GAUGES = frozenset({
    "http_requests_in_flight", "gateway_backend_in_flight", "gateway_backend_connections",
    "process_resident_memory_bytes", "process_virtual_memory_bytes", "process_open_fds",
})  # fmt: skip
_COUNTED = ("counter", "histogram", "summary")


class Family:
    """A metric: its lines of comment and its samples."""

    def __init__(self) -> None:
        self.comments: list[str] = []
        self.counted = False
        self.added = False
        self.samples: dict[str, str] = {}


def parse(text: str) -> dict[str, Family]:
    """The metrics of a text, by name. Samples stand below the comments of their metric, as every client writes them."""
    families: dict[str, Family] = {}
    family = Family()
    for line in text.splitlines():
        if line.startswith("#"):
            _, keyword, name, *rest = line.split(" ", 3)
            family = families.setdefault(name, Family())
            family.comments.append(line)
            if keyword == "TYPE":
                family.counted = rest[0] in _COUNTED
                family.added = family.counted or name in ADDED_GAUGES
        elif line:
            series, _, value = line.rpartition(" ")
            family.samples[series] = value
    return families


def added_up(own: str, others: Iterable[str]) -> str:
    """`own`, with what the others have counted added to it."""
    families = parse(own)
    for text in others:
        for name, theirs in parse(text).items():
            if not theirs.added:
                continue
            mine = families.setdefault(name, Family())
            mine.comments = mine.comments or theirs.comments
            for series, value in theirs.samples.items():
                present = mine.samples.get(series)
                mine.samples[series] = value if present is None else repr(float(present) + float(value))
    return _written(families)


def counted(text: str) -> str:
    """Only what has been counted: what a worker that has ended leaves to the next one in its place."""
    return _written({name: family for name, family in parse(text).items() if family.counted})


def _written(families: dict[str, Family]) -> str:
    lines: list[str] = []
    for family in families.values():
        lines += family.comments
        lines += [f"{series} {value}" for series, value in family.samples.items()]
    return "\n".join(lines) + "\n" if lines else ""
