"""The Hub's clients for JavaScript, @huggingface/hub and @huggingface/transformers, in Node."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.registry.conftest import StoreSettings
from tests.registry.js_clients import INSTALL_S, VECTORS, installed, model_folder, publish
from tests.support.hub import contents, serving_registry

WITHIN_S = 60.0

pytestmark = [pytest.mark.engines, pytest.mark.timeout(INSTALL_S + WITHIN_S)]


def run(flow: str, folder: Path, settings: StoreSettings, commit: str) -> Any:
    """What the flow prints."""
    settings = {**settings}
    with serving_registry(settings.pop("store"), **settings) as url:
        environment = os.environ | {"REGISTRY": url, "FOLDER": str(folder), "COMMIT": commit}
        done = subprocess.run(
            ["node", installed() / flow], env=environment, capture_output=True, text=True, timeout=WITHIN_S, check=False
        )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_huggingface_hub(store_settings: StoreSettings, tmp_path: Path) -> None:
    """Metadata, files, tensors, pointers, searches, a snapshot, and the errors, on both stores."""
    folder = model_folder(tmp_path / "repo")
    manifest = publish(folder, store_settings)
    found = run("hub.mjs", tmp_path / "cache", store_settings, manifest.commit)
    files = sorted(contents(folder))
    weights = manifest.file("model.safetensors")
    assert weights is not None
    assert weights.lfs
    config = manifest.file("config.json")
    assert config is not None
    data = (folder / "model.safetensors").read_bytes()
    snapshot = Path(found.pop("snapshot"))
    assert contents(snapshot) == contents(folder)
    assert found == {
        "info": {
            "name": "test/small",
            "task": "text-generation",
            "sha": manifest.commit,
            "library": "transformers",
            "license": "mit",
        },
        "id": True,
        "paths": files,
        "exists": [True, True, False],
        "repos": [True, False],
        "access": "none",
        "raw": f"version https://git-lfs.github.com/spec/v1\noid sha256:{weights.sha256}\nsize {weights.size}\n",
        "small": '{"pooling": "mean"}',
        "rawSmall": '{"pooling": "mean"}',
        "missing": None,
        "download": {"size": len(data), "start": list(data[:8])},
        "whole": len(data),
        "etag": found["etag"] if store_settings["store"].startswith("s3") else f'"{config.etag}"',
        "tensors": {"sharded": False, "names": ["a", "b"], "count": {"F32": 300_002}},
        "files": sorted([*files, "1_Pooling", "onnx"]),
        "pathsInfo": ["config.json"],
        "commits": [manifest.commit],
        "count": 1,
        "models": ["test/small"],
        "none": [],
        "otherCase": "test/small",
        "short": manifest.commit,
        "noRepository": ["HubApiError", 404],
        "noRevision": ["HubApiError", 404],
    }


def test_transformers_js(store_settings: StoreSettings, tmp_path: Path) -> None:
    """`env.remoteHost`: a configuration, a tokenizer at a commit, and a model that ONNX Runtime executes."""
    manifest = publish(model_folder(tmp_path / "repo"), store_settings)
    found = run("transformers.mjs", tmp_path / "cache", store_settings, manifest.commit)
    assert found == {"type": "bert", "ids": [1, 2], "shape": [1, 2, 2], "values": VECTORS[1:]}
