"""OpenVINO: self-check against PyTorch, export cache, fallback for unsupported models."""

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


class FixedRows:
    """An engine with fixed rows for TOKENS."""

    def __init__(self, *rows: Any) -> None:
        self._rows = np.array(rows, np.float32)

    def run(self, batch: Any) -> NDArray[np.float32]:
        return self._rows[[TOKENS.index(item) for item in batch]]


def mismatch(fast: Any, *reference: Any, kind: Any = "embedding") -> str | None:
    return self_check.find_mismatch(fast.run, FixedRows(*reference).run, TOKENS, kind)


def test_bfloat16_rounding_passes() -> None:
    assert mismatch(FixedRows([1, 0.01], [0.01, 1]), [1, 0.011], [0.012, 1]) is None


@pytest.mark.parametrize("rows", [([1, 0], [0.84, 0.54]), ([1, 0], [float("nan"), 1]), ([1, 0], [0, 0])])
def test_one_deviating_row_is_rejected(rows: Any) -> None:
    """Such as rows of dynamic int8."""
    assert "cosine" in str(mismatch(FixedRows(*rows), [1, 0], [1, 0]))


def test_rows_that_depend_on_the_batch_are_rejected() -> None:
    class BatchDependent(FixedRows):
        def run(self, batch: Any) -> NDArray[np.float32]:
            return super().run(batch) if len(batch) > 1 else np.array([[1, 1]], np.float32)

    assert "cosine" in str(mismatch(BatchDependent([1, 0], [0, 1]), [1, 0], [0, 1]))


def test_score_tolerance_is_relative_to_the_score_range() -> None:
    assert mismatch(FixedRows([0.5001], [0.6]), [0.5], [0.6], kind="reranker") is None
    assert "score" in str(mismatch(FixedRows([0.501], [0.6]), [0.5], [0.6], kind="reranker"))


def test_openvino_telemetry_is_not_loaded() -> None:
    program = (
        "import sys; from services.embedding.engines.openvino_engine import import_openvino; import_openvino();"
        "import openvino.tools.ovc.telemetry_utils as used; print(used.tm.__name__);"
        "print([name for name, module in sys.modules.items() if name.startswith('openvino_telemetry') and module])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["openvino.tools.ovc.telemetry_stub", "[]"]


@pytest.fixture
def open_minilm(tmp_path: Path) -> Any:
    """Open a copy of MiniLM, as `open_minilm(engine="auto")`."""
    folder = shutil.copytree(models.folder("minilm"), tmp_path / "minilm")

    def opened(**settings: Any) -> Any:
        named = {"device": "cpu", "dtype": "float32", "model_cache": tmp_path / "cache", **settings}
        return open_engine(folder, "embedding", load_settings(EmbeddingSettings, **named), lambda *_: None)

    return opened


def cached_files(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache").glob("openvino/*/*/*"))


@pytest.mark.engines
def test_export_is_cached_by_fingerprint(open_minilm: Any, tmp_path: Path) -> None:
    """The second start reuses it; changed model files replace it."""
    open_minilm()
    first = cached_files(tmp_path)
    assert [path.name for path in first] == ["model.bin", "model.xml"]
    times = [path.stat().st_mtime_ns for path in first]
    open_minilm()
    assert [path.stat().st_mtime_ns for path in cached_files(tmp_path)] == times
    config = tmp_path / "minilm" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"note": "another"}))
    open_minilm()
    second = cached_files(tmp_path)
    assert len(second) == 2
    assert second[0].parent != first[0].parent


@pytest.mark.engines
def test_damaged_export_is_replaced(open_minilm: Any, tmp_path: Path) -> None:
    """The self-check detects wrong weights at the next start."""
    open_minilm()
    weights = next(path for path in cached_files(tmp_path) if path.suffix == ".bin")
    right = weights.read_bytes()
    weights.unlink()  # the engine above may still have the old file mapped
    weights.write_bytes(right[: len(right) // 2].ljust(len(right), b"\0"))
    assert open_minilm().name == "openvino-f32"
    assert weights.read_bytes() == right


@pytest.mark.engines
def test_unwritable_cache_does_not_prevent_the_start(open_minilm: Any, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where a folder should be")
    assert open_minilm().name == "openvino-f32"


@pytest.mark.engines
def test_unsupported_model_falls_back_to_pytorch(open_minilm: Any, tmp_path: Path) -> None:
    """With ENGINE=openvino it is an error with the reason."""
    config = tmp_path / "minilm" / "config_sentence_transformers.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"prompts": {"query": "search for: "}}))
    pooling = tmp_path / "minilm" / "1_Pooling" / "config.json"
    pooling.write_text(json.dumps(json.loads(pooling.read_text()) | {"include_prompt": False}))
    assert open_minilm(engine="auto").name == "sentence-transformers"
    with pytest.raises(RuntimeError, match=r"ENGINE=openvino .* prompt.* ENGINE=auto"):
        open_minilm(engine="openvino")
