"""Engine for CPUs: the model's modules, including pooling and normalisation, compiled by OpenVINO.

The model is exported from its safetensors, cached for the next start (`openvino_export`), and used only if its results
match PyTorch's (`self_check`). Precision is bfloat16 if the CPU has instructions for it, else float32.
"""

import gc
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import structlog

from kit.service.service import Report
from services.embedding.engines import openvino_export, self_check
from services.embedding.engines.interface import Text, Tokens
from services.embedding.engines.openvino_export import UnsupportedModel
from services.embedding.engines.text_model import TextModel
from services.embedding.engines.torch_engine import TorchEngine

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

log = structlog.get_logger(__name__)

Precision = Literal["bf16", "f32"]
# Flags in /proc/cpuinfo. Without these instructions OpenVINO emulates bfloat16, slowly.
BF16_CPU_FLAGS = {"avx512_bf16", "amx_bf16"}


def open_engine(openvino: Any, model: TextModel, *, precisions: Sequence[Precision], cpu_threads: int, cache: Path,
                folder: Path, report: Report) -> "OpenVinoEngine":  # fmt: skip
    """Compile `model`, loaded by PyTorch in float32 from `folder`, and release PyTorch's copy of the weights.

    Uses the first of `precisions` that passes the self-check. Blocks for seconds. Raises UnsupportedModel, and then
    leaves `model` unchanged.
    """
    if model.excludes_prompt_from_pooling and model.prompts:
        raise UnsupportedModel("its pooling excludes the prompt, which an exported model cannot do")
    report(0.6, "preparing the model for OpenVINO")
    batch = self_check.probes(model)
    cache_entry = openvino_export.ExportCache(openvino, folder, model.kind, cache)

    def check(exported: Any) -> OpenVinoEngine:
        report(0.8, "comparing OpenVINO with PyTorch")
        return _first_agreeing(openvino, exported, model, batch, precisions, cpu_threads)

    cached = cache_entry.load()
    if cached is not None:
        try:
            return check(cached)
        except UnsupportedModel as error:
            log.warning("cached export does not match the model; exporting again", reason=str(error))
    return check(cache_entry.export(model, batch))


def _first_agreeing(
    openvino: Any, exported: Any, model: TextModel, batch: Sequence[Tokens], precisions: Sequence[Precision],
    cpu_threads: int
) -> "OpenVinoEngine":  # fmt: skip
    """Return an engine in the first precision that matches PyTorch. Raises UnsupportedModel if none does."""
    reference = TorchEngine(model)
    problems: list[str] = []
    for precision in precisions:
        engine = OpenVinoEngine(_compile(openvino, exported, precision, cpu_threads), model, precision)
        try:
            problem = self_check.find_mismatch(engine.run, reference.run, batch, model.kind)
        except RuntimeError as error:
            problem = f"it fails: {error}"
        if problem is None:
            model.drop_weights()
            gc.collect()
            return engine
        problems.append(f"in {precision} {problem}")
    raise UnsupportedModel("; ".join(problems))


def candidate_precisions(dtype: str, kind: str) -> Sequence[Precision]:
    """Return the precisions to try for a DTYPE, fastest first. Rankings need exact scores: rerankers use float32."""
    if dtype == "float32" or kind == "reranker":
        return ("f32",)
    if dtype == "bfloat16":
        return ("bf16",)
    return ("bf16", "f32") if _cpu_has_bf16() else ("f32",)


def import_openvino() -> Any:
    """Import OpenVINO with its telemetry disabled. Raises ImportError if it is not installed."""
    # An entry of None makes this import fail; OpenVINO then uses a stub that sends nothing.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None is what blocks an import
    import openvino  # type: ignore[import-untyped]  # ships no types

    return openvino


def _cpu_has_bf16() -> bool:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return False
    flags = next((line for line in lines if line.startswith("flags")), "")
    return not BF16_CPU_FLAGS.isdisjoint(flags.split())


def _compile(openvino: Any, exported: Any, precision: Precision, cpu_threads: int) -> Any:
    # LATENCY: one batch at a time on all cores.
    options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
    if cpu_threads:
        options["INFERENCE_NUM_THREADS"] = cpu_threads
    try:
        return openvino.Core().compile_model(exported, "CPU", options)
    except RuntimeError as error:
        raise UnsupportedModel(f"it cannot be compiled: {error}") from error


class OpenVinoEngine:
    """A compiled embedding model or cross-encoder."""

    device = "cpu"
    # Measured with MiniLM on one core: 60 µs per token, 1 ms per batch, 4 ms more for a new shape.
    batch_cost = 64

    def __init__(self, compiled: Any, model: TextModel, precision: Precision) -> None:
        self._request = compiled.create_infer_request()
        self._inputs = [port.get_any_name() for port in compiled.inputs]
        self._types = "token_type_ids" in self._inputs
        self._model: TextModel | None = model
        self.name = f"openvino-{precision}"
        self.max_tokens = model.max_tokens
        self.vocabulary = model.vocabulary
        self.dimensions = model.dimensions
        self.special_tokens = model.special_tokens
        self.prompts = model.prompts

    def tokenize(
        self, texts: Sequence[Text], *, prompt: str | None, truncate_to: int | None, document_tokens: int | None = None
    ) -> list[Tokens]:
        """See `TextEngine.tokenize`."""
        assert self._model is not None, "engine is closed"
        return self._model.tokenize(texts, prompt=prompt, truncate_to=truncate_to, document_tokens=document_tokens)

    def run(self, batch: Sequence[Tokens]) -> "NDArray[np.float32]":
        """See `TextEngine.run`."""
        assert self._model is not None, "engine is closed"
        arrays = self._model.pad(batch, types=self._types)
        # Inputs are shared: they live until the call returns. Outputs are copied: they outlive it.
        output = self._request.infer([arrays[name] for name in self._inputs], share_inputs=True)
        rows: NDArray[np.float32] = output[0]
        return rows

    async def aclose(self) -> None:
        """Release the weights."""
        self._request = self._model = None
        gc.collect()
