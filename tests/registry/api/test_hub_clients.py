"""Three generations of the Hub's client, 0.36, the last 1.x and the newest, in the same flow."""

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import huggingface_hub
import pytest

from kit.config.catalogue import Catalogue
from registry.download.folder_import import import_folder
from registry.models.library import Library
from registry.open_store import open_store
from registry.settings import RegistrySettings
from tests.registry.conftest import ROOT, StoreSettings
from tests.support.hub import contents, serving_registry, small_repo

# Environments are made once and kept. MODELS_HOME moves them, as it does with models.
HOME = Path(os.environ.get("MODELS_HOME", ROOT / ".cluster" / "packages")).parent / "hub-clients"
FLOW = ROOT / "tests" / "registry" / "hub_flow.py"
WITHIN_S = 300


def python_with(version: str) -> str:
    """The Python of an environment with this version of huggingface_hub."""
    if version == huggingface_hub.__version__:
        return sys.executable
    home = HOME / version
    done = home / "complete"
    if not done.exists():
        venv.create(home, with_pip=True, clear=True)
        install = [str(home / "bin" / "python"), "-m", "pip", "install", "--quiet", f"huggingface_hub=={version}"]
        subprocess.run(install, check=True, timeout=WITHIN_S)
        done.touch()
    return str(home / "bin" / "python")


@pytest.mark.engines
@pytest.mark.timeout(WITHIN_S)
@pytest.mark.parametrize("version", ["0.36.2", "1.33.0", huggingface_hub.__version__])
def test_every_generation_of_the_client_works(version: str, store_settings: StoreSettings, tmp_path: Path) -> None:
    """Queries, downloads, expected errors and digests, on both stores."""
    folder = small_repo(tmp_path / "repo")
    store = open_store(RegistrySettings(**store_settings))
    manifest = import_folder(Library(store, Catalogue([])), folder, name="small", repo="test/small", revision="main")
    store.close()
    files = sorted(contents(folder))
    settings = {**store_settings}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    with serving_registry(settings.pop("store"), **settings) as url:
        environment |= {"HF_ENDPOINT": url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_TELEMETRY": "1"}
        command = [python_with(version), str(FLOW), str(tmp_path)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=WITHIN_S, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "siblings": files,
        "tree": sorted([*files, "1_Pooling"]),
        "paths_info": ["config.json"],
        "branches": ["main"],
        "search": ["test/small"],
        "there": [True, True, True],
        "absent": [False, False, False],
        "commit": manifest.commit,
        "snapshot": files,
        "single": '{"pooling": "mean"}',
        "no file": "EntryNotFoundError",
        "no repository": "RepositoryNotFoundError",
        "no revision": "RevisionNotFoundError",
        "hf download": "ok",
        "hf cache verify": "not offered" if version.startswith("0.") else "ok",
    }
