"""Where the state is kept: what is said of a folder or a disk that will not do."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from quickstart import home, options

ROOT = Path(options.__file__).parents[1]


@pytest.mark.parametrize(
    ("place", "reason"),
    [("a-file", "it is not a folder"), ("a-file/below", "not a directory"), ("/proc/x", "no such file")],
)
def test_unusable_home_is_reported_in_one_line(tmp_path: Path, place: str, reason: str) -> None:
    """Before anything is installed; and it is not for lack of a reason that one has to guess."""
    (tmp_path / "a-file").touch()
    asked = subprocess.run(
        [sys.executable, "-m", "quickstart.home", "--home", str(tmp_path / place)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert asked.returncode == 1
    assert asked.stderr.count("\n") == 1
    assert str(tmp_path / place) in asked.stderr
    assert reason in asked.stderr
    assert "--home DIR" in asked.stderr


def test_stop_creates_no_folder(tmp_path: Path) -> None:
    """`--stop` for a cluster that never was leaves nothing behind."""
    subprocess.run(
        [sys.executable, "-m", "quickstart.home", "--stop", "--home", str(tmp_path / "none")], cwd=ROOT, check=True
    )
    assert not (tmp_path / "none").exists()


def test_full_disk_is_reported_unless_the_models_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the folder's own disk that is measured, and before any model is fetched."""
    asked = []
    usage = shutil.disk_usage

    def disk_usage(path: Path) -> object:
        asked.append(path)
        return usage(path)

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    monkeypatch.setattr(home, "NEEDED_GB", 10**9)
    with pytest.raises(home.HomeError, match=r"GB free and the .*models need .* --home"):
        home.check_disk(tmp_path)
    assert asked == [tmp_path]
    (tmp_path / "models.yaml").touch()
    home.check_disk(tmp_path)


def test_options_cannot_be_abbreviated(capsys: pytest.CaptureFixture[str]) -> None:
    """A misspelt option is told, and not taken for another one."""
    with pytest.raises(SystemExit):
        options.parse(["--smok"])
    assert "unrecognized arguments: --smok" in capsys.readouterr().err
