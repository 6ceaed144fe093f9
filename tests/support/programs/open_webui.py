"""Open WebUI from PyPI, in its own environment and with its default settings, pointed at a gateway."""

import fcntl
import functools
import os
import shutil
import signal
import subprocess
import time
import venv
from pathlib import Path

import httpx2

from quickstart.install import LOG, install_torch

ROOT = Path(__file__).resolve().parents[3]
HOME = ROOT / ".cluster" / "open-webui"
VERSION = "0.12.4"
# The day after this version's release: its dependencies are the same in every installation.
RELEASED = "2026-10-26"
UV = "0.13.9"
START_S = 600.0
END_S = 30.0


@functools.cache
def installed() -> Path:
    """Return an environment with Open WebUI; made the first time, from about 700 MB of packages.

    Raises CalledProcessError or QuickstartError if that fails; the output has the reason.
    """
    for folder in (HOME, LOG):
        folder.parent.mkdir(parents=True, exist_ok=True)
    with HOME.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        stamp, state = HOME / ".installed", f"{VERSION} {RELEASED} {HOME}"
        if not (stamp.is_file() and stamp.read_text() == state):
            shutil.rmtree(HOME, ignore_errors=True)
            venv.create(HOME, with_pip=True, symlinks=True)
            python = str(HOME / "bin" / "python")
            install_torch(python)  # first, or the CUDA build comes with the rest
            subprocess.run([python, "-m", "pip", "install", "--quiet", f"uv=={UV}"], check=True)
            install = [python, "-m", "uv", "pip", "install", "--quiet", "--python", python, "--exclude-newer", RELEASED]
            subprocess.run([*install, f"open-webui=={VERSION}"], check=True)
            stamp.write_text(state)
    return HOME


class OpenWebUI:
    """One running Open WebUI without accounts, without a way to the outside. `output` is its log."""

    def __init__(self, folder: Path, gateway: str, port: int) -> None:
        """Start it; its chats, models and speech come from the OpenAI API at `gateway`."""
        self.url = f"http://127.0.0.1:{port}"
        self._log = folder / "open-webui.log"
        environment = {
            "DATA_DIR": str(folder),
            "OFFLINE_MODE": "True",
            "HF_HUB_OFFLINE": "1",
            "ANONYMIZED_TELEMETRY": "False",
            "WEBUI_AUTH": "False",
            "WEBUI_SECRET_KEY": "test",
            "ENABLE_OLLAMA_API": "False",
            "OPENAI_API_BASE_URL": f"{gateway}/v1",
            "OPENAI_API_KEY": "none",
            "RAG_EMBEDDING_ENGINE": "openai",
            "RAG_EMBEDDING_MODEL": "minilm",
            "RAG_OPENAI_API_BASE_URL": f"{gateway}/v1",
            "RAG_OPENAI_API_KEY": "none",
            "AUDIO_STT_ENGINE": "openai",
            "AUDIO_STT_MODEL": "whisper-1",
            "AUDIO_STT_OPENAI_API_BASE_URL": f"{gateway}/v1",
            "AUDIO_STT_OPENAI_API_KEY": "none",
        }
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                [str(installed() / "bin" / "open-webui"), "serve", "--host", "127.0.0.1", "--port", str(port)],
                cwd=folder,
                env=os.environ | environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        """Return what it has logged."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    def wait_ready(self) -> None:
        """Wait until it responds. Raises AssertionError with its log."""
        deadline = time.monotonic() + START_S
        while not self._responds():
            assert self.process.poll() is None, f"Open WebUI ended early:\n{self.output}"
            assert time.monotonic() < deadline, f"no response after {START_S:g} s:\n{self.output}"
            time.sleep(0.05)

    def _responds(self) -> bool:
        try:
            return httpx2.get(f"{self.url}/health", timeout=5).status_code == 200
        except httpx2.HTTPError:
            return False

    def stop(self) -> None:
        """End it in any state."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(END_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
