"""The engine on PyTorch: sentence-transformers, with pooling and normalisation from the model's own files."""

import contextlib
import gc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kit.catalogue import Kind
from kit.service import Report
from services.embedding.engine import Text, TextEngine, Tokens
from services.embedding.settings import Dtype

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Tokenizers that know no limit say so with a number like 1e30.
NO_LIMIT = 1_000_000


def open_engine(folder: Path, kind: Kind, *, device: str, dtype: Dtype, cpu_threads: int, report: Report) -> TextEngine:
    """Load the model in `folder`; blocks for seconds to minutes.

    Raises RuntimeError that says what is wrong with the model or the device, and ImportError without the engine.
    """
    report(0.1, "importing PyTorch and sentence-transformers")
    import torch
    from sentence_transformers import CrossEncoder, SentenceTransformer
    from transformers.utils.logging import disable_progress_bar

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise RuntimeError(
            f"DEVICE={device}, but PyTorch finds no usable CUDA GPU. Set DEVICE=cpu, or check the driver."
        )
    if cpu_threads:
        torch.set_num_threads(cpu_threads)
    if dtype == "auto":
        dtype = "float16" if device.startswith("cuda") else "float32"
    options: dict[str, Any] = {
        "device": device,
        "local_files_only": True,
        "model_kwargs": {"dtype": getattr(torch, dtype)},
    }
    report(0.5, f"loading the weights onto {device}")
    disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers leaves it untyped; bars spoil a log
    engine: TextEngine
    if kind == "reranker":
        engine = CrossEncoderEngine(CrossEncoder(str(folder), **options))
        probe: Text = ("first", "batch")
    else:
        engine = SentenceEngine(SentenceTransformer(str(folder), **options))
        probe = "first batch"
    report(0.9, "computing a first batch")
    engine.run(engine.tokenize([probe], prompt=None, cut=None))
    return engine


class _TorchEngine:
    """What embedding models and cross-encoders share: tokenizing, padding, running the modules."""

    def __init__(self, model: Any, name: str) -> None:
        import torch

        if getattr(model, "tokenizer", None) is None or model.transformers_model is None:
            raise RuntimeError("The model is not a text transformer; this engine runs no other architecture.")
        self._torch = torch
        self._model = model.eval()
        self._pad_id = model.tokenizer.pad_token_id or 0
        self._pad_left = model.tokenizer.padding_side == "left"
        self._modality: Any = "text"
        self.name = name
        self.device = str(model.device)
        self.max_tokens = _token_limit(model)
        self.vocabulary = int(model.transformers_model.get_input_embeddings().num_embeddings)
        self.prompts: Sequence[str] = [name for name, prompt in model.prompts.items() if prompt]
        self._default_prompt: str | None = model.default_prompt_name

    def tokenize(self, texts: Sequence[Text], *, prompt: str | None, cut: int | None) -> list[Tokens]:
        """See `TextEngine.tokenize`."""
        truncation = {"truncation": False} if cut is None else {"truncation": "longest_first", "max_length": cut}
        prompt_text = self._model.prompts.get(prompt or self._default_prompt) or None
        features = self._model.preprocess(
            list(texts),
            prompt=prompt_text,
            processing_kwargs={"text": {"padding": False, **truncation}, "common": {"return_tensors": None}},
        )
        self._modality = features["modality"]
        types = features.get("token_type_ids") or [None] * len(texts)
        prompt_length = features.get("prompt_length") or 0
        return [Tokens(ids, kinds, prompt_length) for ids, kinds in zip(features["input_ids"], types, strict=True)]

    def _forward(self, batch: Sequence[Tokens]) -> dict[str, Any]:
        width = max(len(item) for item in batch)
        features = {
            "input_ids": self._padded([item.ids for item in batch], width, self._pad_id),
            "attention_mask": self._padded([[1] * len(item) for item in batch], width, 0),
        }
        if any(item.types is not None for item in batch):
            rows = [item.types if item.types is not None else [0] * len(item) for item in batch]
            features["token_type_ids"] = self._padded(rows, width, 0)
        extra = {"modality": self._modality, "prompt_length": batch[0].prompt_length}
        output: dict[str, Any] = self._model({**features, **extra})
        return output

    def _padded(self, rows: Sequence[Sequence[int]], width: int, value: int) -> Any:
        fill = [[value] * (width - len(row)) for row in rows]
        padded = [[*pad, *row] if self._pad_left else [*row, *pad] for row, pad in zip(rows, fill, strict=True)]
        return self._torch.tensor(padded, dtype=self._torch.int64).to(self._model.device)

    async def aclose(self) -> None:
        """Drop the weights and give the GPU's memory back."""
        self._model = None
        gc.collect()
        if self.device.startswith("cuda"):
            self._torch.cuda.empty_cache()


class SentenceEngine(_TorchEngine):
    """An embedding model."""

    def __init__(self, model: Any) -> None:
        super().__init__(model, "sentence-transformers")
        self.dimensions = int(model.get_embedding_dimension())

    def run(self, batch: Sequence[Tokens]) -> "NDArray[np.float32]":
        """See `TextEngine.run`."""
        return _by_prompt_length(batch, self._embed)

    def _embed(self, batch: Sequence[Tokens]) -> "NDArray[np.float32]":
        with self._torch.inference_mode():
            rows: NDArray[np.float32] = self._forward(batch)["sentence_embedding"].float().cpu().numpy()
        return rows


class CrossEncoderEngine(_TorchEngine):
    """A cross-encoder: one score per pair, through the activation that the model's configuration names."""

    dimensions = 1

    def __init__(self, model: Any) -> None:
        if model.num_labels != 1:
            raise RuntimeError(
                f"The model has {model.num_labels} labels; reranking and scoring need a cross-encoder with one."
            )
        super().__init__(model, "sentence-transformers")

    def run(self, batch: Sequence[Tokens]) -> "NDArray[np.float32]":
        """See `TextEngine.run`."""
        with self._torch.inference_mode():
            scores = self._model.activation_fn(self._forward(batch)["scores"].float())
            rows: NDArray[np.float32] = scores.reshape(len(batch), 1).cpu().numpy()
        return rows


def _by_prompt_length(
    batch: Sequence[Tokens], run: Callable[[Sequence[Tokens]], "NDArray[np.float32]"]
) -> "NDArray[np.float32]":
    """Run the batch in groups of one prompt length: pooling that leaves the prompt out takes one length per call."""
    lengths = {item.prompt_length for item in batch}
    if len(lengths) == 1:
        return run(batch)
    import numpy as np

    order = sorted(range(len(batch)), key=lambda index: batch[index].prompt_length)
    groups = [run([item for item in batch if item.prompt_length == length]) for length in sorted(lengths)]
    rows = np.concatenate(groups)
    unsorted = np.empty_like(rows)
    unsorted[order] = rows
    return unsorted


def _token_limit(model: Any) -> int:
    """The most tokens the model reads: its own setting, else its table of positions, else 512."""
    limits = [model.max_seq_length, getattr(model.config, "max_position_embeddings", None)]
    with contextlib.suppress(StopIteration):
        return next(int(limit) for limit in limits if limit and limit < NO_LIMIT)
    return 512
