"""The programs that take no arguments: what they answer to some."""

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
def test_help_says_where_the_settings_are(program: str) -> None:
    """Instead of a server that starts; and the files that it names are there."""
    asked = run(program, "--help")
    assert asked.returncode == 0, asked.stderr
    assert f"python -m {program}\n" in asked.stdout
    named = [word for word in asked.stdout.split() if "/" in word and word.endswith(".py")]
    assert named[0] == f"{program.replace('.', '/')}/settings.py"
    assert all((ROOT / name).is_file() for name in [*named, "README.md", ".env.example"])


@pytest.mark.parametrize("program", PROGRAMS)
def test_anything_else_is_refused_in_one_line(program: str) -> None:
    """With EX_USAGE: whoever gives `--port` learns that it does nothing."""
    asked = run(program, "--port", "1")
    assert asked.returncode == 64
    (line,) = asked.stderr.splitlines()
    assert "'--port'" in line
    assert "environment" in line
