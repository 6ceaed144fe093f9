"""The Hub's clients for JavaScript, installed by npm, and a model that they can use."""

import hashlib
import json
import os
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from kit.config.catalogue import Catalogue
from registry.download.folder_import import import_folder
from registry.models.library import Library
from registry.models.manifest import Manifest
from registry.open_store import open_store
from registry.settings import RegistrySettings
from tests.registry.conftest import ROOT, StoreSettings
from tests.support.hub import small_repo

FLOWS = ROOT / "tests" / "registry" / "js"
# Kept between runs. MODELS_HOME moves it, as it does with models.
HOME = Path(os.environ.get("MODELS_HOME", ROOT / ".cluster" / "packages")).parent / "js-clients"
INSTALL_S = 300.0
CARD = "---\nlicense: mit\npipeline_tag: text-generation\nlibrary_name: transformers\n---\n# Small\n"
VECTORS = [[0.0, 0.0], [1.0, 2.0], [3.0, 4.0]]


def installed() -> Path:
    """A folder with the clients of the lock and the flows beside them; installed the first time. Skips without npm."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    lock = (FLOWS / "package-lock.json").read_bytes()
    folder = HOME / hashlib.sha256(lock).hexdigest()[:12]
    if not (folder / "complete").exists():
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(FLOWS, folder)
        # The lock has the digest of each package, and leaves to npm where it comes from.
        command = ["npm", "ci", "--ignore-scripts", "--omit-lockfile-registry-resolved", "--no-audit", "--no-fund"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=INSTALL_S, check=False)
        if done.returncode != 0:
            pytest.skip(f"npm cannot install the clients: {done.stderr.strip().splitlines()[-1:]}")
        (folder / "complete").touch()
    shutil.copytree(FLOWS, folder, dirs_exist_ok=True)
    return folder


def safetensors(tensors: dict[str, list[float]]) -> bytes:
    """A safetensors file (https://huggingface.co/docs/safetensors) with these vectors."""
    header, data = {}, b""
    for name, values in tensors.items():
        packed = struct.pack(f"<{len(values)}f", *values)
        header[name] = {"dtype": "F32", "shape": [len(values)], "data_offsets": [len(data), len(data) + len(packed)]}
        data += packed
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def field(number: int, value: int | str | bytes) -> bytes:
    """A field of a protocol buffer; numbers below 128."""
    if isinstance(value, int):
        return bytes([number << 3, value])
    data = value.encode() if isinstance(value, str) else value
    length = bytes([len(data)]) if len(data) < 128 else bytes([len(data) & 127 | 128, len(data) >> 7])
    return bytes([number << 3 | 2]) + length + data


def onnx_embedding(vectors: list[list[float]]) -> bytes:
    """A model that looks each token up in `vectors` (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto)."""

    def value_info(name: str, kind: int, *dims: str) -> bytes:
        shape = b"".join(field(1, field(2, dim)) for dim in dims)
        return field(1, name) + field(2, field(1, field(1, kind) + field(2, shape)))

    packed = b"".join(struct.pack(f"<{len(row)}f", *row) for row in vectors)
    tensor = field(1, len(vectors)) + field(1, len(vectors[0])) + field(2, 1) + field(8, "table") + field(9, packed)
    node = field(1, "table") + field(1, "input_ids") + field(2, "last_hidden_state") + field(4, "Gather")
    inputs = b"".join(field(11, value_info(name, 7, "batch", "length")) for name in ("input_ids", "attention_mask"))
    output = field(12, value_info("last_hidden_state", 1, "batch", "length", "width"))
    graph = field(1, node) + field(2, "graph") + field(5, tensor) + inputs + output
    return field(1, 8) + field(7, graph) + field(8, field(1, "") + field(2, 13))


def model_folder(folder: Path) -> Path:
    """A model with a card, tensors in LFS, a tokenizer of two words, and an ONNX graph."""
    small_repo(folder, weights=1000)
    (folder / "README.md").write_text(CARD)
    (folder / "config.json").write_text('{"model_type": "bert", "architectures": ["BertModel"]}')
    (folder / "model.safetensors").write_bytes(safetensors({"a": [1.0] * 300_000, "b": [2.0, 3.0]}))
    tokenizer = Tokenizer(WordLevel({"[UNK]": 0, "hello": 1, "world": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    tokenizer_config = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "[UNK]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.onnx").write_bytes(onnx_embedding(VECTORS))
    return folder


def publish(folder: Path, settings: StoreSettings) -> Manifest:
    store = open_store(RegistrySettings(**settings))
    manifest = import_folder(Library(store, Catalogue([])), folder, name="small", repo="test/small", revision="main")
    store.close()
    return manifest
