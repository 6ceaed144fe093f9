"""Secrets are created once, atomically, and readable by the group of the services only."""

import subprocess
import sys
from pathlib import Path

from kit.tools.generate_secrets import generate


def test_existing_secrets_are_kept(tmp_path: Path) -> None:
    assert generate(tmp_path, ["user", "password"]) == ["user", "password"]
    before = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert before["user"] != before["password"]
    assert all(len(value) == 48 for value in before.values())
    assert generate(tmp_path, ["user", "password", "token"]) == ["token"]
    assert {name: (tmp_path / name).read_text() for name in before} == before


def test_readable_by_owner_and_group_only(tmp_path: Path) -> None:
    """Whatever the umask."""
    command = "import os; os.umask(0o077); from kit.tools.generate_secrets import generate; from pathlib import Path; "
    subprocess.run([sys.executable, "-c", command + f"generate(Path({str(tmp_path)!r}), ['user'])"], check=True)
    assert (tmp_path / "user").stat().st_mode & 0o777 == 0o440


def test_partial_file_of_a_killed_run_is_replaced(tmp_path: Path) -> None:
    (tmp_path / ".user.part").write_text("half")
    assert generate(tmp_path, ["user"]) == ["user"]
    assert [path.name for path in tmp_path.iterdir()] == ["user"]


def test_missing_folder_is_reported_without_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "kit.tools.generate_secrets", str(tmp_path / "absent"), "user"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "absent" in done.stderr
    assert "Traceback" not in done.stderr
