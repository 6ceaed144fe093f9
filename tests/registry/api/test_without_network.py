"""Air-gapped use: with HF_ENDPOINT set, nothing leaves the machine."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kit.config.catalogue import Catalogue
from registry.download.folder_import import import_folder
from registry.models.library import Library
from registry.store.file_store import FileStore
from tests.registry.bundles import KEY, write
from tests.support.models import folder

ROOT = Path(__file__).resolve().parents[3]
MODELS = {
    "smollm2": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "minilm": "sentence-transformers/all-MiniLM-L6-v2",
    "whisper": "Systran/faster-whisper-base",
}


@pytest.mark.engines
def test_bundle_is_sufficient_for_a_machine_without_network(tmp_path: Path) -> None:
    """Exported, verified, imported, served; loaded by the command, the library and three engines."""
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-rn", "true"], check=False).returncode != 0:
        pytest.skip("this machine does not let us make a network namespace (unshare -rn)")
    library = Library(FileStore(tmp_path / "origin"), Catalogue([]))
    for name, repo in MODELS.items():
        import_folder(library, folder(name), name=name, repo=repo, revision="main")
    write(library, tmp_path / "bundle", volume=100_000_000)
    shutil.rmtree(tmp_path / "origin")
    offline = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    done = subprocess.run(
        [
            *("unshare", "-rn", sys.executable, "-m", "tests.registry.no_network"),
            *(str(tmp_path / "bundle"), KEY.public.text, str(tmp_path)),
        ],
        cwd=ROOT,
        env=offline,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    loaded = [
        *("registry verify", "registry import", "hf download", "snapshot_download"),
        *("AutoModelForCausalLM", "SentenceTransformer", "WhisperModel"),
    ]
    assert [line for line in done.stdout.splitlines() if line in loaded] == loaded
