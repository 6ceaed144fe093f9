"""Schema fuzzing: schemathesis sends requests generated from /openapi.json, and none may get a 5xx."""

import subprocess
import sys
from pathlib import Path

WITHIN_S = 300


def assert_no_server_error(url: str, work: Path, *options: str, examples: int = 20) -> None:
    """Send examples, schema boundaries, random values and call sequences; `work` is a folder for its files."""
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json", "--checks=not_a_server_error"),
        *(f"--max-examples={examples}", "--seed=1", "--no-color", "--continue-on-failure", *options),
    ]
    done = subprocess.run(command, cwd=work, capture_output=True, text=True, timeout=WITHIN_S, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "passed" in done.stdout
