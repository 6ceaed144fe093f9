"""Selection of the engine: PyTorch on a GPU; on a CPU OpenVINO if its results match PyTorch's, else PyTorch."""

from pathlib import Path

import structlog

from kit.config.catalogue import Kind
from kit.service.service import Report
from services.embedding.engines import openvino_engine, text_model
from services.embedding.engines.interface import TextEngine
from services.embedding.engines.openvino_export import UnsupportedModel
from services.embedding.engines.torch_engine import TorchEngine
from services.embedding.settings import EmbeddingSettings

log = structlog.get_logger(__name__)


def open_engine(folder: Path, kind: Kind, settings: EmbeddingSettings, report: Report) -> TextEngine:
    """Load the model in `folder` with the engine that `settings` select. Blocks for seconds to minutes.

    Raises RuntimeError if the model, the device or the engine is unusable, ImportError if PyTorch is not installed.
    """
    report(0.1, "importing PyTorch and sentence-transformers")
    import torch

    device = settings.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise RuntimeError(
            f"DEVICE={device}, but PyTorch finds no usable CUDA GPU. Set DEVICE=cpu, or check the NVIDIA driver."
        )
    if settings.cpu_threads:
        torch.set_num_threads(settings.cpu_threads)
    engine = _load_openvino(folder, kind, settings, device, report)
    if engine is None:
        engine = _load_torch(folder, kind, settings, device, report)
    report(0.9, "computing a warm-up batch")
    engine.run(
        engine.tokenize([("first", "batch") if kind == "reranker" else "first batch"], prompt=None, truncate_to=None)
    )
    return engine


def _load_torch(folder: Path, kind: Kind, settings: EmbeddingSettings, device: str, report: Report) -> TextEngine:
    dtype: str = settings.dtype
    if dtype == "auto":
        dtype = "float16" if device.startswith("cuda") else "float32"
    report(0.5, f"loading the weights onto {device}")
    return TorchEngine(text_model.load(folder, kind, device=device, dtype=dtype))


def _load_openvino(
    folder: Path, kind: Kind, settings: EmbeddingSettings, device: str, report: Report
) -> TextEngine | None:
    """Load the model with OpenVINO; None if the settings exclude it or it does not support the model."""
    required = settings.engine == "openvino"
    if settings.engine == "torch" or (not required and (device != "cpu" or settings.dtype == "float16")):
        return None
    try:
        if device != "cpu" or settings.dtype == "float16":
            raise UnsupportedModel(
                f"it needs DEVICE=cpu and a dtype other than float16 (DEVICE={device}, DTYPE={settings.dtype})"
            )
        openvino = openvino_engine.import_openvino()
        report(0.5, "loading the weights")
        return openvino_engine.open_engine(
            openvino,
            text_model.load(folder, kind, device="cpu", dtype="float32"),
            precisions=openvino_engine.candidate_precisions(settings.dtype, kind),
            cpu_threads=settings.cpu_threads,
            cache=settings.model_cache,
            folder=folder,
            report=report,
        )
    except (UnsupportedModel, ImportError) as error:
        if required:
            raise RuntimeError(
                f"ENGINE=openvino cannot run this model: {error}. Set ENGINE=auto or ENGINE=torch."
            ) from error
        log.warning("OpenVINO cannot run this model; using PyTorch, which is slower on a CPU", reason=str(error))
        return None
