"""Every module imports where no engine is installed: the gateway's image has no torch, and neither have its tests."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("chatui", "edge", "kit", "gateway", "registry", "services", "quickstart")
ENGINES = (
    "torch",
    "vllm",
    "transformers",
    "sentence_transformers",
    "faster_whisper",
    "ctranslate2",
    "onnxruntime",
    "safetensors",
    "tokenizers",
    "accelerate",
    "gguf",
)

PROGRAM = """
import importlib, json, pkgutil, sys, traceback

refused, packages = map(set, json.loads(sys.argv[1]))

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in refused:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Refuse())
failed = {}

def load(name):
    try:
        return importlib.import_module(name)
    except BaseException:
        failed[name] = traceback.format_exc()

def walk(name):
    module = load(name)
    for child in pkgutil.iter_modules(getattr(module, "__path__", ()), name + "."):
        if not child.name.endswith(".__main__"):
            walk(child.name)
            loaded.append(child.name)

loaded = []
for package in packages:
    walk(package)
print(json.dumps({"loaded": loaded, "failed": failed}))
"""


@pytest.fixture(scope="module")
def outcome() -> dict[str, object]:
    """What importing everything in a Python without engines came to."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps([ENGINES, PACKAGES])],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    outcome: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return outcome


def test_every_module_imports_without_engines(outcome: dict[str, object]) -> None:
    """Engines are imported inside the loaders of the real ones, nowhere else."""
    assert outcome["failed"] == {}


def test_every_module_was_tried(outcome: dict[str, object]) -> None:
    """The walk saw each module that git or the working tree has, so that none is forgotten."""
    there = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if path.name not in ("__init__.py", "__main__.py")
    }
    loaded = outcome["loaded"]
    assert isinstance(loaded, list)
    assert there <= set(loaded)
