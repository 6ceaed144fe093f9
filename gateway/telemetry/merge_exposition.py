"""Merge the Prometheus expositions of several workers: counters are summed. Pure.

All workers run the same code, so that equal series are written equally, with labels in the same order. Format:
https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format
"""

from collections.abc import Iterable

# Gauges that are summed. Any other gauge is that of the scraped worker.
SUMMED_GAUGES = frozenset({
    "http_requests_in_flight", "gateway_backend_in_flight", "gateway_backend_connections",
    "process_resident_memory_bytes", "process_virtual_memory_bytes", "process_open_fds",
})  # fmt: skip
_COUNTER_TYPES = ("counter", "histogram", "summary")


class Family:
    """A metric: its comment lines and its samples."""

    def __init__(self) -> None:
        self.comments: list[str] = []
        self.is_counter = False
        self.is_summed = False
        self.samples: dict[str, str] = {}


def parse(text: str) -> dict[str, Family]:
    """Parse an exposition; return its metrics by name. Samples must follow the comments of their metric."""
    families: dict[str, Family] = {}
    family = Family()
    for line in text.splitlines():
        if line.startswith("#"):
            _, keyword, name, *rest = line.split(" ", 3)
            family = families.setdefault(name, Family())
            family.comments.append(line)
            if keyword == "TYPE":
                family.is_counter = rest[0] in _COUNTER_TYPES
                family.is_summed = family.is_counter or name in SUMMED_GAUGES
        elif line:
            series, _, value = line.rpartition(" ")
            family.samples[series] = value
    return families


def merge(own: str, others: Iterable[str]) -> str:
    """Return `own` with the counters and summed gauges of the others added."""
    families = parse(own)
    for text in others:
        for name, theirs in parse(text).items():
            if not theirs.is_summed:
                continue
            mine = families.setdefault(name, Family())
            mine.comments = mine.comments or theirs.comments
            for series, value in theirs.samples.items():
                present = mine.samples.get(series)
                mine.samples[series] = value if present is None else repr(float(present) + float(value))
    return _format(families)


def without_gauges(text: str) -> str:
    """Return the counters and histograms only: those of an ended worker stay valid."""
    return _format({name: family for name, family in parse(text).items() if family.is_counter})


def _format(families: dict[str, Family]) -> str:
    lines: list[str] = []
    for family in families.values():
        lines += family.comments
        lines += [f"{series} {value}" for series, value in family.samples.items()]
    return "\n".join(lines) + "\n" if lines else ""
