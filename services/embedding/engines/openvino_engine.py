"""The engine for CPUs: the model's own modules, pooling and normalisation included, compiled by OpenVINO.

It is exported from the safetensors on the machine, kept as a file for the next start (`export`), and used only if it
computes what PyTorch computes (`self_check`). In bfloat16, where the CPU has instructions for it, else in float32.
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
from services.embedding.engines.openvino_export import Unsuitable
from services.embedding.engines.text_model import TextModel
from services.embedding.engines.torch_engine import TorchEngine

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

log = structlog.get_logger(__name__)

Precision = Literal["bf16", "f32"]
# Instructions that multiply bfloat16, as /proc/cpuinfo calls them. Without them OpenVINO emulates it, slowly.
BF16_FLAGS = {"avx512_bf16", "amx_bf16"}


def open_engine(openvino: Any, model: TextModel, *, precisions: Sequence[Precision], cpu_threads: int, cache: Path,
                folder: Path, report: Report) -> "OpenVinoEngine":  # fmt: skip
    """Compile `model`, which PyTorch has loaded in float32 from `folder`, and drop PyTorch's copy of its weights.

    The first of `precisions` that passes the check is taken. Blocks for seconds. Raises Unsuitable, with `model` as it
    was.
    """
    if model.pools_without_prompt and model.prompts:
        raise Unsuitable("its pooling leaves the prompt out, whose length OpenVINO would have to be told")
    report(0.6, "preparing the model for OpenVINO")
    batch = self_check.probes(model, model.kind)
    exports = openvino_export.Exports(openvino, folder, model.kind, cache)

    def checked(exported: Any) -> OpenVinoEngine:
        report(0.8, "comparing OpenVINO with PyTorch")
        return _checked(openvino, exported, model, batch, precisions, cpu_threads)

    kept = exports.kept()
    if kept is not None:
        try:
            return checked(kept)
        except Unsuitable as error:
            log.warning("the model is exported anew: what was kept is not this model", reason=str(error))
    return checked(exports.made(model, batch))


def _checked(
    openvino: Any, exported: Any, model: TextModel, batch: Sequence[Tokens], precisions: Sequence[Precision],
    cpu_threads: int
) -> "OpenVinoEngine":  # fmt: skip
    """The engine in the first precision that agrees with PyTorch. Raises Unsuitable when none does."""
    reference = TorchEngine(model)
    said: list[str] = []
    for precision in precisions:
        engine = OpenVinoEngine(_compiled(openvino, exported, precision, cpu_threads), model, precision)
        try:
            complaint = self_check.complaint(engine, reference, batch, model.kind)
        except RuntimeError as error:  # whatever its kernels meet
            complaint = f"it fails: {error}"
        if complaint is None:
            model.drop_weights()
            gc.collect()
            return engine
        said.append(f"in {precision} {complaint}")
    raise Unsuitable("; ".join(said))


def precisions(dtype: str, kind: str) -> Sequence[Precision]:
    """What to try for a DTYPE, best first. Scores are compared with each other, so cross-encoders stay in float32."""
    if dtype == "float32" or kind == "reranker":
        return ("f32",)
    if dtype == "bfloat16":
        return ("bf16",)
    return ("bf16", "f32") if _has_bf16() else ("f32",)


def import_openvino() -> Any:
    """Import OpenVINO without its reports to its makers, which `import openvino` alone would send.

    Raises ImportError where it is not installed.
    """
    # An entry of None makes the import fail; OpenVINO then takes a stub that sends nothing.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None is what blocks an import
    import openvino  # type: ignore[import-untyped]  # ships no types

    return openvino


def _has_bf16() -> bool:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return False
    flags = next((line for line in lines if line.startswith("flags")), "")
    return not BF16_FLAGS.isdisjoint(flags.split())


def _compiled(openvino: Any, exported: Any, precision: Precision, cpu_threads: int) -> Any:
    # LATENCY: one batch at a time, over all cores.
    options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
    if cpu_threads:
        options["INFERENCE_NUM_THREADS"] = cpu_threads
    try:
        return openvino.Core().compile_model(exported, "CPU", options)
    except RuntimeError as error:
        raise Unsuitable(f"it does not compile: {error}") from error


class OpenVinoEngine:
    """A compiled embedding model or cross-encoder."""

    device = "cpu"
    # Measured with MiniLM on one core: 60 µs a token, 1 ms a batch, and 4 ms more for a shape that it has not seen.
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
        self.prompts = model.prompts

    def tokenize(self, texts: Sequence[Text], *, prompt: str | None, cut: int | None) -> list[Tokens]:
        """See `TextEngine.tokenize`."""
        assert self._model is not None, "used after it was closed"
        return self._model.tokenize(texts, prompt=prompt, cut=cut)

    def run(self, batch: Sequence[Tokens]) -> "NDArray[np.float32]":
        """See `TextEngine.run`."""
        assert self._model is not None, "used after it was closed"
        arrays = self._model.padded(batch, types=self._types).arrays
        # The inputs are shared, since they live until it returns; the rows are a copy, since they outlive it.
        output = self._request.infer([arrays[name] for name in self._inputs], share_inputs=True)
        rows: NDArray[np.float32] = output[0]
        return rows

    async def aclose(self) -> None:
        """Drop the weights."""
        self._request = self._model = None
        gc.collect()
