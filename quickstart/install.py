"""Creates `.venv` and installs lock files into it. Standard library only.

    python -m quickstart.install requirements/quickstart.txt

Skips installed locks. torch is not in the locks; its CPU build is installed separately (see `TORCH_INDEX`).
"""

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import time
import venv
from pathlib import Path

from quickstart import QuickstartError

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
LOG = ROOT / ".cluster" / "logs" / "install.log"
NEEDED_GB = 2.5
MIN_PYTHON, FIRST_UNSUPPORTED_PYTHON = (3, 11), (3, 14)  # as in scripts/python.sh

TORCH = "2.13.0"
# PyTorch's index of CPU builds; on Linux the default index has only the CUDA build, several GB larger.
TORCH_INDEX = os.environ.get("TORCH_INDEX", "https://download.pytorch.org/whl/cpu")


def main() -> None:
    """Install the lock files of the command line. Exits with 1 and a message on an error."""
    try:
        install([ROOT / name for name in sys.argv[1:]])
    except QuickstartError as error:
        print(f"\n{error}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print("\nStopped. Run the same command again to continue.", file=sys.stderr)
        raise SystemExit(130) from None


def install(locks: list[Path]) -> None:
    """Install `locks` into `.venv`. Raises QuickstartError."""
    stamps = {lock: VENV / f".installed-{lock.stem}" for lock in locks}
    missing = [lock for lock in locks if not is_current(lock, stamps[lock])]
    if not missing:
        return
    check_disk()
    LOG.parent.mkdir(parents=True, exist_ok=True)
    LOG.write_text("")
    python = make_venv()
    install_torch(python)
    for lock in missing:
        run_pip(
            python, ["--no-deps", "--require-hashes", "-r", str(lock)], packages_in(lock), f"Installing {lock.stem}"
        )
        stamps[lock].write_text(stamp_of(lock))


def is_current(lock: Path, stamp: Path, env: Path = VENV) -> bool:
    """Return whether `stamp` matches the lock and the environment's Python works."""
    return stamp.is_file() and stamp.read_text() == stamp_of(lock, env) and venv_works(env / "bin" / "python")


def stamp_of(lock: Path, env: Path = VENV) -> str:
    """Return the identity of an installed lock: content, torch's version, path (a moved venv does not work)."""
    return f"{hashlib.sha256(lock.read_bytes()).hexdigest()} torch={TORCH} {env}\n"


def packages_in(lock: Path) -> int:
    """Return the number of packages in a lock."""
    return len(re.findall(r"^[A-Za-z0-9][\w.-]*==", lock.read_text(), flags=re.MULTILINE))


def check_disk(needed_gb: float = NEEDED_GB) -> None:
    """Raise QuickstartError if the disk is too small for the packages."""
    free_gb = shutil.disk_usage(ROOT).free / 1e9
    if free_gb < needed_gb:
        raise QuickstartError(
            f"{ROOT} has {free_gb:.1f} GB free; the packages need {needed_gb} GB. "
            "Free some space, or clone to another disk."
        )


def venv_works(python: Path, min_python: tuple[int, int] = MIN_PYTHON) -> bool:
    """Return whether the interpreter starts, has pip, and has a version that the locks support.

    It does not start if its base Python was removed or the folder was moved; pip is missing after an interrupted
    creation, or if another tool created the environment.
    """
    probe = f"import sys, pip; sys.exit(not {min_python} <= sys.version_info[:2] < {FIRST_UNSUPPORTED_PYTHON})"
    return python.exists() and subprocess.run([python, "-c", probe], capture_output=True, check=False).returncode == 0


def make_venv() -> str:
    """Create `.venv` unless there is a working one; return its Python."""
    python = VENV / "bin" / "python"
    if not venv_works(python):
        print(f"Creating {VENV.name} with Python {platform.python_version()} …", flush=True)
        venv.create(VENV, clear=True, with_pip=True, symlinks=True)
    return str(python)


def install_torch(python: str) -> None:
    """Install the CPU build of torch, from pip's configured sources or else from PyTorch's index."""
    probe = (
        "import torch, sys; sys.exit(torch.version.cuda is not None or torch.__version__.split('+')[0] != sys.argv[1])"
    )
    if subprocess.run([python, "-c", probe, TORCH], capture_output=True, check=False).returncode == 0:
        return
    if sys.platform != "linux":
        run_pip(python, ["--no-deps", f"torch=={TORCH}"], 1, "Installing torch")
        return
    requirement = ["--no-deps", f"torch=={TORCH}+cpu"]
    try:
        run_pip(python, requirement, 1, "Installing torch (CPU)", quiet_failure=True)
    except QuickstartError:
        run_pip(python, [*requirement, "--index-url", TORCH_INDEX], 1, "Installing torch (CPU) from PyTorch's index")


def run_pip(
    python: str, arguments: list[str], packages: int, title: str, *, quiet_failure: bool = False, log_path: Path = LOG
) -> None:
    """Run `pip install` with a progress bar. Raises QuickstartError with the end of pip's output."""
    command = [python, "-m", "pip", "install", "--disable-pip-version-check", "--no-input", *arguments]
    bar = ProgressBar(title, packages)
    tail: list[str] = []
    with (
        log_path.open("a") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as pip,
    ):
        assert pip.stdout is not None
        try:
            for line in pip.stdout:
                log.write(line)
                tail = [*tail[-14:], line]
                if line.startswith(("Collecting ", "Requirement already satisfied")):
                    bar.step(line.split()[1].split("=")[0])
                elif line.startswith("Installing collected"):
                    bar.show("unpacking")
        except KeyboardInterrupt:
            pip.terminate()
            raise
    if pip.returncode != 0:
        bar.finish("failed" if not quiet_failure else "not available")
        raise QuickstartError(
            f"pip failed (full log: {log_path}):\n\n{''.join(tail)}\n"
            "Without access to the package index, set PIP_INDEX_URL to your mirror; then run the command again."
        )
    bar.finish("done")


class ProgressBar:
    """Progress bar on a terminal; start and end lines elsewhere."""

    def __init__(self, title: str, total: int) -> None:
        self._title = title
        self._total = max(total, 1)
        self._done = 0
        self._began = time.monotonic()
        self._live = sys.stdout.isatty()
        if not self._live:
            print(f"{title} …", flush=True)

    def step(self, package: str) -> None:
        """Count a package."""
        self._done = min(self._done + 1, self._total)
        self.show(package)

    def show(self, activity: str) -> None:
        """Show the current activity."""
        if self._live:
            filled = 24 * self._done // self._total
            bar = "█" * filled + "░" * (24 - filled)
            print(f"\r\033[K{self._title} {bar} {self._done}/{self._total} {activity}", end="", flush=True)

    def finish(self, result: str) -> None:
        """Print the result."""
        start = "\r\033[K" if self._live else ""
        print(f"{start}{self._title}: {result} in {time.monotonic() - self._began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
