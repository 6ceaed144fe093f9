"""Check of the folder for state and its disk."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from quickstart import QuickstartError, home, options

ROOT = Path(options.__file__).parents[1]


@pytest.mark.parametrize(
    ("path", "reason"),
    [("a-file", "it is not a folder"), ("a-file/below", "not a directory"), ("/proc/x", "no such file")],
)
def test_unusable_home_is_reported_in_one_line(tmp_path: Path, path: str, reason: str) -> None:
    """Before the installation."""
    (tmp_path / "a-file").touch()
    result = subprocess.run(
        [sys.executable, "-m", "quickstart.home", "--home", str(tmp_path / path)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert str(tmp_path / path) in result.stderr
    assert reason in result.stderr
    assert "--home DIR" in result.stderr


def test_stop_creates_no_folder(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "quickstart.home", "--stop", "--home", str(tmp_path / "none")], cwd=ROOT, check=True
    )
    assert not (tmp_path / "none").exists()


def test_full_disk_is_reported_unless_the_models_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder's own disk is measured, before any download."""
    measured = []
    usage = shutil.disk_usage

    def disk_usage(path: Path) -> object:
        measured.append(path)
        return usage(path)

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    with pytest.raises(QuickstartError, match=r"GB free; the .*models need .* --home"):
        home.check_disk(tmp_path, 10**9)
    assert measured == [tmp_path]
    (tmp_path / "models.yaml").touch()
    home.check_disk(tmp_path)


def test_options_cannot_be_abbreviated(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        options.parse(["--smok"])
    assert "unrecognized arguments: --smok" in capsys.readouterr().err
