"""The work of a piece of code, counted: the same on every machine, however busy."""

import sys
import tracemalloc
from collections.abc import Callable
from typing import Any


def calls(run: Callable[[], object]) -> int:
    """Return how many functions `run` calls, those in C included."""
    count = 0

    def profile(_frame: Any, event: str, _argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        run()
    finally:
        sys.setprofile(before)
    return count


def peak_memory(run: Callable[[], object]) -> int:
    """Return the most memory that `run` has allocated at a time, in bytes."""
    tracemalloc.start()
    try:
        run()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
