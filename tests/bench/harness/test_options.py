"""Command lines of the benches: rejected options and lazy imports."""

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
def test_invalid_counts_are_rejected(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is not a whole number of 3 or more"):
        at_least(3)(text)


def test_valid_counts() -> None:
    assert (at_least(3)("3"), at_least(0)("0")) == (3, 0)


@pytest.mark.parametrize(("bench", "option"), [("bench.fuzz", "--count"), ("bench.routing", "--requests")])
def test_zero_rounds_are_a_usage_error(bench: str, option: str) -> None:
    run = subprocess.run(
        [sys.executable, "-m", bench, option, "0"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 2
    assert f"{option}: '0' is not a whole number of" in run.stderr


@pytest.mark.parametrize("bench", ["bench.registry", "bench.registry_faults", "bench.registry_load"])
def test_a_bench_needs_no_test_runner(bench: str) -> None:
    """Shared support code must not import pytest, which the quickstart's environment lacks."""
    run = subprocess.run(
        [sys.executable, "-c", WITHOUT_PYTEST, bench], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert f"usage: python -m {bench}" in run.stdout
