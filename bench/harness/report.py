"""Report of a bench: medians of ratios over interleaved rounds, a table, and a last line of JSON."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence

Figures = Mapping[str, float | int | None]


def median_ratio(ours: Sequence[float], reference: Sequence[float]) -> float:
    """Return the median ratio of ours to the reference, per round: a slow moment of the machine affects both.

    Raises ValueError for fewer than three rounds or lists of different lengths.
    """
    if len(ours) < 3:
        raise ValueError(f"a median needs at least three rounds, not {len(ours)}")
    return statistics.median(one / other for one, other in zip(ours, reference, strict=True))


def quantile(values: Sequence[float], share: float) -> float:
    """Return the quantile by nearest rank (0.99 is p99). Raises ValueError for an empty list."""
    if not values:
        raise ValueError("a quantile needs at least one value")
    ordered = sorted(values)
    return ordered[max(math.ceil(share * len(ordered)) - 1, 0)]


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the distribution-free 95 % confidence interval of the median.

    It lies between two order statistics, each with at most 2.5 % of the probability outside: P(median < k-th of n) is
    that of fewer than k heads in n coin tosses (Conover, Practical Nonparametric Statistics, 3.2). Raises ValueError
    for fewer than six values.
    """
    ordered = sorted(values)
    count = len(ordered)
    rank, below = 0, 0.0  # values to cut off at each end
    while (below := below + math.comb(count, rank) / 2**count) <= 0.025:
        rank += 1
    if rank == 0:
        raise ValueError(f"a 95 % interval of a median needs at least six values, not {count}")
    return ordered[rank - 1], ordered[count - rank]


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Format rows in columns: text left-aligned, numbers right-aligned with three significant digits."""
    cells = [list(header), *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    numeric = [all(isinstance(row[column], int | float) for row in rows) for column in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        ).rstrip()
        for row in cells
    )


def last_line(bench: str, figures: Figures) -> str:
    """Return the JSON line that ends a bench's output. A figure that was not measured is null, never missing."""
    return json.dumps({"bench": bench, "figures": {name: _rounded(value) for name, value in figures.items()}})


def _cell(value: object) -> str:
    return (
        f"{value:.3g}"
        if isinstance(value, float) and abs(value) < 1000
        else f"{value:,.0f}"
        if isinstance(value, float)
        else str(value)
    )


def _rounded(value: float | int | None) -> float | int | None:
    return round(value, 6) if isinstance(value, float) else value
