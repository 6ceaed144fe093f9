"""The benches' command lines: what they refuse, and what they need only when they run."""

import argparse
import subprocess
import sys
from pathlib import Path

import pytest

from bench.harness.options import at_least

ROOT = Path(__file__).resolve().parents[3]
WITHOUT_PYTEST = """
import runpy, sys
sys.modules["pytest"] = None
sys.argv = [sys.argv[1], "--help"]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize("text", ["2", "-4", "x", "3.5", ""])
def test_counts_that_measure_nothing_are_refused(text: str) -> None:
    """A bench of no rounds would pass."""
    with pytest.raises(argparse.ArgumentTypeError, match="is not a whole number of 3 or more"):
        at_least(3)(text)


def test_counts() -> None:
    """None is a count where it says that a part is left out."""
    assert (at_least(3)("3"), at_least(0)("0")) == (3, 0)


@pytest.mark.parametrize(("bench", "option"), [("bench.fuzz", "--count"), ("bench.routing", "--requests")])
def test_a_bench_of_nothing_is_refused(bench: str, option: str) -> None:
    """By its command line, in a sentence."""
    asked = subprocess.run(
        [sys.executable, "-m", bench, option, "0"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert asked.returncode == 2
    assert f"{option}: '0' is not a whole number of" in asked.stderr


@pytest.mark.parametrize("bench", ["bench.registry", "bench.registry_faults", "bench.registry_load"])
def test_a_bench_needs_no_test_runner(bench: str) -> None:
    """Its helpers are shared with the tests; the environment that the quickstart makes has no pytest."""
    asked = subprocess.run(
        [sys.executable, "-c", WITHOUT_PYTEST, bench], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert asked.returncode == 0, asked.stderr
    assert f"usage: python -m {bench}" in asked.stdout
