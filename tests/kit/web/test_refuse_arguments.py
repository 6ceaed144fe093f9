"""Command line of programs without arguments."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PROGRAMS = ["gateway", "services.llm", "services.embedding", "services.transcription"]


def run(program: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """The program, without a setting: were it to start, it would not end in time."""
    return subprocess.run(
        [sys.executable, "-m", program, *arguments], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_names_the_settings_files(program: str) -> None:
    asked = run(program, "--help")
    assert asked.returncode == 0, asked.stderr
    assert f"python -m {program}\n" in asked.stdout
    named = [word for word in asked.stdout.split() if "/" in word and word.endswith(".py")]
    assert named[0] == f"{program.replace('.', '/')}/settings.py"
    assert all((ROOT / name).is_file() for name in [*named, "README.md", ".env.example"])


@pytest.mark.parametrize("program", PROGRAMS)
def test_other_arguments_are_rejected(program: str) -> None:
    """With EX_USAGE and one line."""
    asked = run(program, "--port", "1")
    assert asked.returncode == 64
    (line,) = asked.stderr.splitlines()
    assert "'--port'" in line
    assert "environment" in line
