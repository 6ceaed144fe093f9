"""`--help` of every script that people run: its usage, and nothing is done."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", ["bundle.sh", "doctor.sh", "offline-setup.sh", "reload.sh", "test.sh"])
def test_help_is_the_scripts_own_text(name: str) -> None:
    """The options, each with what it does, and exit status 0, where there is no Python environment yet."""
    asked = subprocess.run(
        [ROOT / "scripts" / name, "--help"],
        capture_output=True,
        text=True,
        check=False,
        timeout=20,
        env={"PATH": "/usr/bin:/bin"},
    )
    assert asked.returncode == 0, asked.stderr
    assert f"scripts/{name}" in asked.stdout
    assert "set -e" not in asked.stdout
    assert "#" not in asked.stdout
