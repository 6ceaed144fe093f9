"""Which engine runs the model: PyTorch on GPUs, OpenVINO on CPUs where it computes the same, else PyTorch there too."""

from pathlib import Path

import structlog

from kit.config.catalogue import Kind
from kit.service.service import Report
from services.embedding.engines import openvino_engine, text_model
from services.embedding.engines.interface import TextEngine
from services.embedding.engines.openvino_export import Unsuitable
from services.embedding.engines.torch_engine import TorchEngine
from services.embedding.settings import EmbeddingSettings

log = structlog.get_logger(__name__)


def open_engine(folder: Path, kind: Kind, settings: EmbeddingSettings, report: Report) -> TextEngine:
    """Load the model in `folder` as the settings say; blocks for seconds to minutes.

    Raises RuntimeError that says what is wrong with the model, the device or the engine that was asked for, and
    ImportError without PyTorch.
    """
    report(0.1, "importing PyTorch and sentence-transformers")
    import torch

    device = settings.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise RuntimeError(
            f"DEVICE={device}, but PyTorch finds no usable CUDA GPU. Set DEVICE=cpu, or check the driver."
        )
    if settings.cpu_threads:
        torch.set_num_threads(settings.cpu_threads)
    engine = _on_openvino(folder, kind, settings, device, report) or _on_torch(folder, kind, settings, device, report)
    report(0.9, "computing a first batch")
    engine.run(engine.tokenize([("first", "batch") if kind == "reranker" else "first batch"], prompt=None, cut=None))
    return engine


def _on_torch(folder: Path, kind: Kind, settings: EmbeddingSettings, device: str, report: Report) -> TextEngine:
    dtype: str = settings.dtype
    if dtype == "auto":
        dtype = "float16" if device.startswith("cuda") else "float32"
    report(0.5, f"loading the weights onto {device}")
    return TorchEngine(text_model.load(folder, kind, device=device, dtype=dtype))


def _on_openvino(
    folder: Path, kind: Kind, settings: EmbeddingSettings, device: str, report: Report
) -> TextEngine | None:
    """The engine on OpenVINO; None when it is not to be used, or not for this model."""
    wanted = settings.engine == "openvino"
    if settings.engine == "torch" or (not wanted and (device != "cpu" or settings.dtype == "float16")):
        return None
    try:
        if device != "cpu" or settings.dtype == "float16":
            raise Unsuitable(f"it runs on DEVICE=cpu and not in float16; these are {device} and {settings.dtype}")
        openvino = openvino_engine.import_openvino()
        report(0.5, "loading the weights")
        return openvino_engine.open_engine(
            openvino,
            text_model.load(folder, kind, device="cpu", dtype="float32"),
            precisions=openvino_engine.precisions(settings.dtype, kind),
            cpu_threads=settings.cpu_threads,
            cache=settings.model_cache,
            folder=folder,
            report=report,
        )
    except (Unsuitable, ImportError) as error:
        if wanted:
            raise RuntimeError(f"ENGINE=openvino cannot run this model: {error}. Set ENGINE=auto or torch.") from error
        log.warning("the model runs on PyTorch, which is slower on a CPU: OpenVINO cannot run it", reason=str(error))
        return None
