"""The installer: skipped locks, checks, errors of pip."""

import subprocess
import sys
import venv
from pathlib import Path

import pytest

from quickstart import QuickstartError, install

ROOT = Path(install.__file__).parent.parent


def test_installed_lock_is_skipped(tmp_path: Path) -> None:
    """If the stamp matches lock, torch version and path."""
    made = tmp_path / ".venv"
    (made / "bin").mkdir(parents=True)
    (made / "bin" / "python").symlink_to(sys.executable)
    lock = tmp_path / "some.txt"
    lock.write_text("a==1 \\\n    --hash=sha256:0\nb-c==2 \\\n    --hash=sha256:1\n")
    stamp = made / ".installed-some"
    assert install.packages_in(lock) == 2
    assert not install.is_current(lock, stamp, made)
    stamp.write_text(install.stamp_of(lock, made))
    assert install.is_current(lock, stamp, made)
    lock.write_text("a==2\n")
    assert not install.is_current(lock, stamp, made)


def test_full_disk_is_reported_before_any_download() -> None:
    with pytest.raises(QuickstartError, match=r"GB free; the packages need .* GB"):
        install.check_disk(10**9)


def test_pip_failure_shows_pip_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the path of the log and the remedy."""
    with pytest.raises(QuickstartError) as caught:
        install.run_pip(
            sys.executable,
            ["--no-index", "no-such-package-at-all==1"],
            1,
            "Installing nothing",
            log_path=tmp_path / "log",
        )
    assert "No matching distribution" in str(caught.value)
    assert "PIP_INDEX_URL" in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert "failed" in capsys.readouterr().out


def test_broken_environment_is_recreated(tmp_path: Path) -> None:
    """Missing interpreter or dangling link."""
    assert not install.venv_works(tmp_path / "bin" / "python")
    dangling = tmp_path / "python"
    dangling.symlink_to(tmp_path / "gone")
    assert not install.venv_works(dangling)
    assert install.venv_works(Path(sys.executable))


def test_interrupted_environment_is_recreated(tmp_path: Path) -> None:
    """Ctrl-C before pip is installed leaves a Python without pip."""
    venv.create(tmp_path / "half", with_pip=False, symlinks=True)
    assert not install.venv_works(tmp_path / "half" / "bin" / "python")


def test_environment_of_an_unsupported_python_is_recreated() -> None:
    assert not install.venv_works(Path(sys.executable), min_python=(3, 99))


def test_installer_runs_without_packages() -> None:
    """Also home, options and session."""
    program = "import quickstart.home, quickstart.install, quickstart.options, quickstart.processes.session"
    subprocess.run([sys.executable, "-S", "-c", program], cwd=ROOT, check=True, capture_output=True)


def test_unsupported_python_reports_the_supported_versions(tmp_path: Path) -> None:
    old = tmp_path / "python3"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "PYTHON": str(old)}
    done = subprocess.run(
        ["bash", "scripts/quickstart.sh"], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "3.11, 3.12 or 3.13" in done.stderr
    assert f"PYTHON={old} is not supported" in done.stderr


def test_help_works_before_anything_is_installed() -> None:
    done = subprocess.run(
        ["bash", "scripts/quickstart.sh", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "--smoke" in done.stdout
    assert "Installing" not in done.stdout


@pytest.mark.parametrize(
    ("option", "code", "message"),
    [("--bogus", 2, "unrecognized arguments"), ("--stop", 0, "No cluster with this folder")],
)
def test_options_without_packages_install_none(tmp_path: Path, option: str, code: int, message: str) -> None:
    """Invalid options and --stop in a fresh clone."""
    done = subprocess.run(
        ["bash", "scripts/quickstart.sh", "--home", str(tmp_path), option],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, message in done.stdout + done.stderr) == (code, True)
    assert "Installing" not in done.stdout
