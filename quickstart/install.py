"""Makes `.venv` and installs one lock file into it. Standard library only: it runs before anything is installed.

    python -m quickstart.install requirements/quickstart.txt

Skips what is installed already. torch comes apart from the lock and always as its CPU build (see `TORCH`).
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

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
LOG = ROOT / ".cluster" / "logs" / "install.log"
NEEDED_GB = 2.5
OLDEST, TOO_NEW = (3, 11), (3, 14)  # as scripts/python.sh looks for

TORCH = "2.13.0"
# PyTorch's own index of CPU builds: on Linux the package index has only the CUDA build, several GB larger.
TORCH_INDEX = os.environ.get("TORCH_INDEX", "https://download.pytorch.org/whl/cpu")


class InstallError(Exception):
    """The environment could not be made; the message says why and what to do."""


def main() -> None:
    """Install the lock files named on the command line; exits 1 with a message when that fails."""
    try:
        install([ROOT / name for name in sys.argv[1:]])
    except InstallError as error:
        print(f"\n{error}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print("\nStopped. Run the same command again: it goes on with what is missing.", file=sys.stderr)
        raise SystemExit(130) from None


def install(locks: list[Path]) -> None:
    """Bring `.venv` to the state that `locks` describe. Raises InstallError."""
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


def is_current(lock: Path, stamp: Path) -> bool:
    """Whether `stamp` says that this very lock is installed and the environment's Python still runs."""
    return stamp.is_file() and stamp.read_text() == stamp_of(lock) and venv_works(VENV / "bin" / "python")


def stamp_of(lock: Path) -> str:
    """What identifies an installed lock: its content, torch's version and the place (a moved venv does not work)."""
    return f"{hashlib.sha256(lock.read_bytes()).hexdigest()} torch={TORCH} {VENV}\n"


def packages_in(lock: Path) -> int:
    """How many packages a lock names."""
    return len(re.findall(r"^[A-Za-z0-9][\w.-]*==", lock.read_text(), flags=re.MULTILINE))


def check_disk() -> None:
    """Raises InstallError when the disk will not hold the packages."""
    free_gb = shutil.disk_usage(ROOT).free / 1e9
    if free_gb < NEEDED_GB:
        raise InstallError(
            f"{ROOT} has {free_gb:.1f} GB free; the packages need {NEEDED_GB} GB. Free some, or clone elsewhere."
        )


def venv_works(python: Path) -> bool:
    """Whether this is an interpreter that starts, has pip, and is of a version that the locks are for.

    It does not start after its base Python was removed or the folder was moved; pip is missing when its making was
    broken off, or when another tool made it.
    """
    probe = f"import sys, pip; sys.exit(not {OLDEST} <= sys.version_info[:2] < {TOO_NEW})"
    return python.exists() and subprocess.run([python, "-c", probe], capture_output=True, check=False).returncode == 0


def make_venv() -> str:
    """Create `.venv` unless a working one is there; returns its Python."""
    python = VENV / "bin" / "python"
    if not venv_works(python):
        print(f"Making {VENV.name} with Python {platform.python_version()} …", flush=True)
        venv.create(VENV, clear=True, with_pip=True, symlinks=True)
    return str(python)


def install_torch(python: str) -> None:
    """Install the CPU build of torch: from the configured sources if they have it, else from PyTorch's index."""
    probe = (
        "import torch, sys; sys.exit(torch.version.cuda is not None or torch.__version__.split('+')[0] != sys.argv[1])"
    )
    if subprocess.run([python, "-c", probe, TORCH], capture_output=True, check=False).returncode == 0:
        return
    if sys.platform != "linux":
        run_pip(python, ["--no-deps", f"torch=={TORCH}"], 1, "Installing torch")
        return
    wanted = ["--no-deps", f"torch=={TORCH}+cpu"]
    try:
        run_pip(python, wanted, 1, "Installing torch (CPU)", quiet_failure=True)
    except InstallError:
        run_pip(python, [*wanted, "--index-url", TORCH_INDEX], 1, "Installing torch (CPU) from PyTorch's index")


def run_pip(python: str, arguments: list[str], packages: int, title: str, *, quiet_failure: bool = False) -> None:
    """Run `pip install`, showing one bar that moves with each package. Raises InstallError with pip's last words."""
    command = [python, "-m", "pip", "install", "--disable-pip-version-check", "--no-input", *arguments]
    bar = Bar(title, packages)
    tail: list[str] = []
    with (
        LOG.open("a") as log,
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
                    bar.say("unpacking")
        except KeyboardInterrupt:
            pip.terminate()
            raise
    if pip.returncode != 0:
        bar.end("failed" if not quiet_failure else "not there")
        raise InstallError(
            f"pip could not install (its full log is {LOG}):\n\n{''.join(tail)}\n"
            "Without access to the package index, set PIP_INDEX_URL to your mirror; then run this again."
        )
    bar.end("done")


class Bar:
    """One line that moves on a terminal, and a line per quarter elsewhere."""

    def __init__(self, title: str, total: int) -> None:
        self._title = title
        self._total = max(total, 1)
        self._done = 0
        self._began = time.monotonic()
        self._live = sys.stdout.isatty()
        if not self._live:
            print(f"{title} …", flush=True)

    def step(self, what: str) -> None:
        """One more package is being fetched."""
        self._done = min(self._done + 1, self._total)
        self.say(what)

    def say(self, what: str) -> None:
        """Show what happens now."""
        if self._live:
            filled = 24 * self._done // self._total
            bar = "█" * filled + "░" * (24 - filled)
            print(f"\r\033[K{self._title} {bar} {self._done}/{self._total} {what}", end="", flush=True)

    def end(self, how: str) -> None:
        """The step is over."""
        start = "\r\033[K" if self._live else ""
        print(f"{start}{self._title}: {how} in {time.monotonic() - self._began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
