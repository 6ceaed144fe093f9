"""A sentence-transformers model as every engine here needs it: its tokenizer, its limits, its prompts, its modules."""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kit.config.catalogue import Kind
from services.embedding.engines.interface import Text, Tokens

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Arrays = Mapping[str, NDArray[np.int64]]

# Tokenizers that know no limit say so with a number like 1e30.
NO_LIMIT = 1_000_000


@dataclass(frozen=True)
class Padded:
    """A batch as the model's first module takes it: arrays of one row per text, all of them one width."""

    arrays: "Arrays"
    prompt_length: int


class TextModel:
    """A loaded embedding model or cross-encoder. Not for several threads at once."""

    def __init__(self, model: Any, kind: Kind) -> None:
        """Wrap a SentenceTransformer or CrossEncoder.

        Raises RuntimeError when it is no text transformer, or a cross-encoder that gives more than one number.
        """
        if getattr(model, "tokenizer", None) is None or model.transformers_model is None:
            raise RuntimeError("The model is not a text transformer; this engine runs no other architecture.")
        if kind == "reranker" and model.num_labels != 1:
            raise RuntimeError(
                f"The model has {model.num_labels} labels; reranking and scoring need a cross-encoder with one."
            )
        self.model = model.eval()
        self.kind = kind
        self.modality: Any = "text"
        self.max_tokens = _token_limit(model)
        self.vocabulary = int(model.transformers_model.get_input_embeddings().num_embeddings)
        self.dimensions = 1 if kind == "reranker" else int(model.get_embedding_dimension())
        self.prompts: Sequence[str] = [name for name, prompt in model.prompts.items() if prompt]
        self._default_prompt: str | None = model.default_prompt_name
        self._pad_id = model.tokenizer.pad_token_id or 0
        self._pad_left = model.tokenizer.padding_side == "left"

    @property
    def pools_without_prompt(self) -> bool:
        """Whether a prompt is left out of the pooling, so that its length matters beyond the tokens."""
        return any(getattr(module, "include_prompt", True) is False for module in self.model.modules())

    def tokenize(self, texts: Sequence[Text], *, prompt: str | None, cut: int | None) -> list[Tokens]:
        """See `TextEngine.tokenize`."""
        truncation = {"truncation": False} if cut is None else {"truncation": "longest_first", "max_length": cut}
        prompt_text = self.model.prompts.get(prompt or self._default_prompt) or None
        features = self.model.preprocess(
            list(texts),
            prompt=prompt_text,
            processing_kwargs={"text": {"padding": False, **truncation}, "common": {"return_tensors": None}},
        )
        self.modality = features["modality"]
        types = features.get("token_type_ids") or [None] * len(texts)
        prompt_length = features.get("prompt_length") or 0
        return [Tokens(ids, kinds, prompt_length) for ids, kinds in zip(features["input_ids"], types, strict=True)]

    def padded(self, batch: Sequence[Tokens], *, types: bool | None = None) -> Padded:
        """The batch as arrays; all of it must have one prompt length where the pooling leaves the prompt out.

        `types` says whether there are token types, None: only if a text has some.
        """
        width = max(len(item) for item in batch)
        arrays = {
            "input_ids": self._rows([item.ids for item in batch], width, self._pad_id),
            "attention_mask": self._rows([[1] * len(item) for item in batch], width, 0),
        }
        if types if types is not None else any(item.types is not None for item in batch):
            arrays["token_type_ids"] = self._rows([item.types or () for item in batch], width, 0)
        return Padded(arrays, batch[0].prompt_length)

    def _rows(self, rows: Sequence[Sequence[int]], width: int, value: int) -> "NDArray[np.int64]":
        import numpy as np

        padded = np.full((len(rows), width), value, np.int64)
        for target, row in zip(padded, rows, strict=True):
            if self._pad_left:
                target[width - len(row) :] = row
            else:
                target[: len(row)] = row
        return padded

    def forward(self, features: Mapping[str, Any], prompt_length: int = 0) -> Any:
        """Run all modules on tensors, and for a cross-encoder its activation. Gives one row per text, in float32."""
        output = self.model({**features, "modality": self.modality, "prompt_length": prompt_length})
        if self.kind == "reranker":
            return self.model.activation_fn(output["scores"].float()).reshape(-1, 1)
        return output["sentence_embedding"].float()

    def drop_weights(self) -> None:
        """Free the memory of the weights; tokenizing goes on, `forward` does not."""
        self.model.to("meta")


def load(folder: Path, kind: Kind, *, device: str, dtype: str) -> TextModel:
    """Load the model in `folder` onto a device of PyTorch; blocks for seconds to minutes.

    Raises RuntimeError that says what is wrong with the model, and ImportError without the engine.
    """
    import torch
    from sentence_transformers import CrossEncoder, SentenceTransformer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers leaves it untyped; bars spoil a log
    cls: Any = CrossEncoder if kind == "reranker" else SentenceTransformer
    options = {"device": device, "local_files_only": True, "model_kwargs": {"dtype": getattr(torch, dtype)}}
    return TextModel(cls(str(folder), **options), kind)


def _token_limit(model: Any) -> int:
    """The most tokens the model reads: its own setting, else its table of positions, else 512."""
    limits = [model.max_seq_length, getattr(model.config, "max_position_embeddings", None)]
    with contextlib.suppress(StopIteration):
        return next(int(limit) for limit in limits if limit and limit < NO_LIMIT)
    return 512
