"""`--help` of the scripts."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", ["bundle.sh", "doctor.sh", "offline-setup.sh", "reload.sh", "test.sh"])
def test_help_prints_the_comment_at_the_top(name: str) -> None:
    """With exit status 0, and without a Python environment."""
    done = subprocess.run(
        [ROOT / "scripts" / name, "--help"],
        capture_output=True,
        text=True,
        check=False,
        timeout=20,
        env={"PATH": "/usr/bin:/bin"},
    )
    assert done.returncode == 0, done.stderr
    assert f"scripts/{name}" in done.stdout
    assert "set -e" not in done.stdout
    assert "#" not in done.stdout
