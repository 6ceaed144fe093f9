"""The fast engine is used only where it computes the same: what was exported, kept, damaged or cannot be exported."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from kit.config.settings import load_settings
from services.embedding.engines import self_check
from services.embedding.engines.engine_selection import open_engine
from services.embedding.engines.interface import Tokens
from services.embedding.settings import EmbeddingSettings
from tests.support import models

TOKENS = [Tokens([1, 2, 3]), Tokens([4, 5])]


class Rows:
    """An engine that computes these rows for TOKENS."""

    def __init__(self, *rows: Any) -> None:
        self._rows = np.array(rows, np.float32)

    def run(self, batch: Any) -> NDArray[np.float32]:
        return self._rows[[TOKENS.index(item) for item in batch]]


def said(fast: Any, *reference: Any, kind: Any = "embedding") -> str | None:
    return self_check.complaint(fast, Rows(*reference), TOKENS, kind)


def test_what_agrees_passes() -> None:
    """Rounding as bfloat16 does is no reason to refuse."""
    assert said(Rows([1, 0.01], [0.01, 1]), [1, 0.011], [0.012, 1]) is None


@pytest.mark.parametrize("rows", [([1, 0], [0.84, 0.54]), ([1, 0], [float("nan"), 1]), ([1, 0], [0, 0])])
def test_what_differs_is_refused(rows: Any) -> None:
    """One row that is off, such as of dynamic int8, is enough."""
    assert "cosine" in str(said(Rows(*rows), [1, 0], [1, 0]))


def test_rows_that_depend_on_the_batch_are_refused() -> None:
    """A text is asked for alone too."""

    class Shared(Rows):
        def run(self, batch: Any) -> NDArray[np.float32]:
            return super().run(batch) if len(batch) > 1 else np.array([[1, 1]], np.float32)

    assert "cosine" in str(said(Shared([1, 0], [0, 1]), [1, 0], [0, 1]))


def test_scores_are_compared_by_their_spread() -> None:
    """A cross-encoder's scores may all lie close together; an error is measured by that."""
    assert said(Rows([0.5001], [0.6]), [0.5], [0.6], kind="reranker") is None
    assert "score" in str(said(Rows([0.501], [0.6]), [0.5], [0.6], kind="reranker"))


def test_import_sends_nothing() -> None:
    """OpenVINO's reports to its makers are not even loaded."""
    program = (
        "import sys; from services.embedding.engines.openvino_engine import import_openvino; import_openvino();"
        "import openvino.tools.ovc.telemetry_utils as used; print(used.tm.__name__);"
        "print([name for name, module in sys.modules.items() if name.startswith('openvino_telemetry') and module])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["openvino.tools.ovc.telemetry_stub", "[]"]


@pytest.fixture
def open_minilm(tmp_path: Path) -> Any:
    """Opens MiniLM from a folder of its own, as `open_minilm(engine="auto")`."""
    folder = shutil.copytree(models.folder("minilm"), tmp_path / "minilm")

    def opened(**settings: Any) -> Any:
        named = {"device": "cpu", "dtype": "float32", "model_cache": tmp_path / "cache", **settings}
        return open_engine(folder, "embedding", load_settings(EmbeddingSettings, **named), lambda *_: None)

    return opened


def kept(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache").glob("openvino/*/*/*"))


@pytest.mark.engines
def test_the_export_is_kept(open_minilm: Any, tmp_path: Path) -> None:
    """The second start reads what the first one wrote; other files of the model mean another export in its place."""
    open_minilm()
    first = kept(tmp_path)
    assert [path.name for path in first] == ["model.bin", "model.xml"]
    times = [path.stat().st_mtime_ns for path in first]
    open_minilm()
    assert [path.stat().st_mtime_ns for path in kept(tmp_path)] == times
    config = tmp_path / "minilm" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"note": "another"}))
    open_minilm()
    second = kept(tmp_path)
    assert len(second) == 2
    assert second[0].parent != first[0].parent


@pytest.mark.engines
def test_a_damaged_export_is_made_anew(open_minilm: Any, tmp_path: Path) -> None:
    """Weights that are not the model's are noticed at the next start, whatever their file's name and size."""
    open_minilm()
    weights = next(path for path in kept(tmp_path) if path.suffix == ".bin")
    right = weights.read_bytes()
    weights.unlink()  # the engine above may still have the old file mapped
    weights.write_bytes(right[: len(right) // 2].ljust(len(right), b"\0"))
    assert open_minilm().name == "openvino-f32"
    assert weights.read_bytes() == right


@pytest.mark.engines
def test_a_cache_that_cannot_be_written(open_minilm: Any, tmp_path: Path) -> None:
    """Then the model is exported at each start, and runs."""
    (tmp_path / "cache").write_text("a file where a folder should be")
    assert open_minilm().name == "openvino-f32"


@pytest.mark.engines
def test_what_openvino_cannot_run(open_minilm: Any, tmp_path: Path) -> None:
    """A model whose pooling leaves the prompt out runs on PyTorch; who insists on OpenVINO is told why it does not."""
    config = tmp_path / "minilm" / "config_sentence_transformers.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"prompts": {"query": "search for: "}}))
    pooling = tmp_path / "minilm" / "1_Pooling" / "config.json"
    pooling.write_text(json.dumps(json.loads(pooling.read_text()) | {"include_prompt": False}))
    assert open_minilm(engine="auto").name == "sentence-transformers"
    with pytest.raises(RuntimeError, match=r"ENGINE=openvino .* prompt .* ENGINE=auto"):
        open_minilm(engine="openvino")
