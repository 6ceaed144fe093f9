"""Embedding servers to compare, each with the same model folder, over HTTP on this machine."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from bench.harness.load import FOLDER, ROOT
from bench.harness.programs import Program
from bench.peers.proxies import installed

# infinity's name for the model; our service uses the catalogue's name.
MODEL = "minilm"
START_S = 240.0
OFFLINE = {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0"}

# infinity reads ONNX from the model folder but does not export it. Export in its own environment, for its version.
_EXPORT = """
import sys, torch
from transformers import AutoModel
model = AutoModel.from_pretrained(sys.argv[1], attn_implementation="eager").eval()
names = ["input_ids", "attention_mask", "token_type_ids"]
axes = {name: {0: "batch", 1: "tokens"} for name in [*names, "last_hidden_state"]}
example = ({name: torch.ones(2, 8, dtype=torch.int64) for name in names},)
torch.onnx.export(model, example, sys.argv[2], input_names=names, output_names=["last_hidden_state"],
                  dynamic_axes=axes, opset_version=17, dynamo=False)
"""


@dataclass(frozen=True, slots=True)
class Server:
    """A running server under comparison."""

    program: Program
    port: int
    path: str


def ours(model: Path, port: int, folder: Path) -> Server:
    """Start our service with its defaults."""
    env = {
        "MODEL": MODEL,
        "MODEL_DIR": str(model),
        "MODEL_CACHE": str(FOLDER / "embedding-cache"),
        "PORT": str(port),
        "CATALOGUE": str(ROOT / "models.yaml"),
        "LOG_FORMAT": "json",
        **OFFLINE,
    }
    program = Program(
        [sys.executable, "-m", "services.embedding"], env=env, cwd=ROOT, log=folder / "ours.log", start_s=START_S
    )
    return Server(program, port, "/v1/embeddings")


def infinity(engine: str, model: Path, port: int, folder: Path) -> Server | None:
    """Start infinity with its engine `torch` or `optimum` (ONNX, mean pooling). Return None if it is not installed."""
    if installed("infinity") is None:
        return None
    command = [
        str(FOLDER / "infinity" / "bin" / "infinity_emb"), "v2", "--served-model-name", MODEL, "--device", "cpu",
        "--engine", engine, "--host", "127.0.0.1", "--port", str(port), "--log-level", "warning",
    ]  # fmt: skip
    if engine == "optimum":
        command += ["--model-id", str(_with_onnx(model)), "--pooling-method", "mean"]
    else:
        command += ["--model-id", str(model)]
    program = Program(command, env={**os.environ, **OFFLINE}, log=folder / f"infinity-{engine}.log", start_s=START_S)
    return Server(program, port, "/embeddings")


def _with_onnx(model: Path) -> Path:
    """Return a copy of the model folder with an ONNX export, made once."""
    made = FOLDER / "infinity-onnx" / model.name
    onnx = made / "onnx" / "model.onnx"
    if not onnx.exists():
        shutil.rmtree(made, ignore_errors=True)
        shutil.copytree(model, made)
        part = onnx.with_suffix(".part")
        part.parent.mkdir()
        python = str(FOLDER / "infinity" / "bin" / "python")
        done = subprocess.run(
            [python, "-W", "ignore", "-c", _EXPORT, str(model), str(part)],
            env={**os.environ, **OFFLINE}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"the ONNX export for infinity failed:\n{done.stderr[-2000:]}")
        part.rename(onnx)
    return made
