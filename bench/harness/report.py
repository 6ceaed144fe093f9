"""How a bench tells what it found: ratios as medians over interleaved rounds, a table, and a last line of JSON."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence

Figures = Mapping[str, float | int | None]


def median_ratio(ours: Sequence[float], reference: Sequence[float]) -> float:
    """The median of ours over reference, round by round: a slow moment of the machine hits both of a round.

    Raises ValueError when there are fewer than three rounds, or not as many of the one as of the other.
    """
    if len(ours) < 3:
        raise ValueError(f"a median wants at least three rounds, not {len(ours)}")
    return statistics.median(one / other for one, other in zip(ours, reference, strict=True))


def quantile(values: Sequence[float], share: float) -> float:
    """The least of `values` that this share of them does not exceed (nearest rank, 0.99 being p99).

    Raises ValueError when there are none.
    """
    if not values:
        raise ValueError("a quantile wants at least one value")
    ordered = sorted(values)
    return ordered[max(math.ceil(share * len(ordered)) - 1, 0)]


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of the median of what `values` were drawn from, whatever its distribution.

    Between the two order statistics outside of which the median lies with at most 2.5 % each: below the k-th of n
    values lies the median with the probability of fewer than k heads in n throws (e.g. Conover, Practical Nonparametric
    Statistics, 3.2). Raises ValueError when there are too few values for that, fewer than six.
    """
    ordered = sorted(values)
    count = len(ordered)
    rank, below = 0, 0.0  # `rank` values may be cut off at each end
    while (below := below + math.comb(count, rank) / 2**count) <= 0.025:
        rank += 1
    if rank == 0:
        raise ValueError(f"a 95 % interval of a median wants at least six values, not {count}")
    return ordered[rank - 1], ordered[count - rank]


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """The rows in columns: text to the left, numbers to the right with three digits that say something."""
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
    """The last line of a bench. A figure that could not be measured is null, never left out."""
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
