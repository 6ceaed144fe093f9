"""A sentence-transformers model: tokenizer, limits, prompts and modules, shared by the engines."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kit.config.catalogue import Kind
from services.embedding.engines.interface import Text, Tokens

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Arrays = dict[str, NDArray[np.int64]]

# Tokenizers without a limit report a number like 1e30.
UNLIMITED_ABOVE = 1_000_000


class TextModel:
    """A loaded embedding model or cross-encoder. Not thread-safe."""

    def __init__(self, model: Any, kind: Kind) -> None:
        """Wrap a SentenceTransformer or CrossEncoder.

        Raises RuntimeError if it is not a text transformer, or a cross-encoder with more than one label.
        """
        if getattr(model, "tokenizer", None) is None or model.transformers_model is None:
            raise RuntimeError("The model is not a text transformer; other architectures are not supported.")
        if kind == "reranker" and model.num_labels != 1:
            raise RuntimeError(
                f"The model has {model.num_labels} labels; reranking and scoring need a cross-encoder with one label."
            )
        self.model = model.eval()
        self.kind = kind
        self.modality: Any = "text"
        self.max_tokens = _token_limit(model)
        self.vocabulary = int(model.transformers_model.get_input_embeddings().num_embeddings)
        self.dimensions = 1 if kind == "reranker" else int(model.get_embedding_dimension())
        self.special_tokens = _special_tokens(model.tokenizer)
        self.prompts: Sequence[str] = [name for name, prompt in model.prompts.items() if prompt]
        self._default_prompt: str | None = model.default_prompt_name
        self._pad_id = model.tokenizer.pad_token_id or 0
        self._pad_left = model.tokenizer.padding_side == "left"

    @property
    def excludes_prompt_from_pooling(self) -> bool:
        """True if pooling excludes the prompt, so that its length must be known."""
        return any(getattr(module, "include_prompt", True) is False for module in self.model.modules())

    def tokenize(
        self, texts: Sequence[Text], *, prompt: str | None, truncate_to: int | None, document_tokens: int | None = None
    ) -> list[Tokens]:
        """See `TextEngine.tokenize`."""
        if document_tokens is not None:
            pairs = [text for text in texts if isinstance(text, tuple)]
            texts = self._truncate_documents(pairs, document_tokens)
        truncation = (
            {"truncation": False} if truncate_to is None else {"truncation": "longest_first", "max_length": truncate_to}
        )
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

    def _truncate_documents(self, pairs: Sequence[tuple[str, str]], max_tokens: int) -> list[Text]:
        """Cut the text of each document after `max_tokens` tokens."""
        offsets = self.model.tokenizer(
            [document for _, document in pairs],
            add_special_tokens=False,
            truncation=True,
            max_length=max_tokens,
            return_offsets_mapping=True,
        )["offset_mapping"]
        return [
            (query, document[: ends[-1][1]] if len(ends) == max_tokens else document)
            for (query, document), ends in zip(pairs, offsets, strict=True)
        ]

    def pad(self, batch: Sequence[Tokens], *, types: bool | None = None) -> "Arrays":
        """Return the model's inputs: arrays with one row per text, padded to one width.

        `types` includes token type ids; None includes them if any text has them.
        """
        width = max(len(item) for item in batch)
        arrays = {
            "input_ids": self._rows([item.ids for item in batch], width, self._pad_id),
            "attention_mask": self._rows([[1] * len(item) for item in batch], width, 0),
        }
        if types if types is not None else any(item.types is not None for item in batch):
            arrays["token_type_ids"] = self._rows([item.types or () for item in batch], width, 0)
        return arrays

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
        """Run all modules, and a cross-encoder's activation, on tensors. Return one float32 row per text."""
        output = self.model({**features, "modality": self.modality, "prompt_length": prompt_length})
        if self.kind == "reranker":
            return self.model.activation_fn(output["scores"].float()).reshape(-1, 1)
        return output["sentence_embedding"].float()

    def drop_weights(self) -> None:
        """Release the weights; `tokenize` continues to work, `forward` does not."""
        self.model.to("meta")


def load(folder: Path, kind: Kind, *, device: str, dtype: str) -> TextModel:
    """Load the model in `folder` onto a PyTorch device. Blocks for seconds to minutes.

    Raises RuntimeError if the model is unusable, ImportError if sentence-transformers is not installed.
    """
    import torch
    from sentence_transformers import CrossEncoder, SentenceTransformer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # type: ignore[no-untyped-call]  # untyped; progress bars clutter the log
    cls: Any = CrossEncoder if kind == "reranker" else SentenceTransformer
    options = {"device": device, "local_files_only": True, "model_kwargs": {"dtype": getattr(torch, dtype)}}
    return TextModel(cls(str(folder), **options), kind)


def _special_tokens(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Return the ids that a tokenizer puts before and after the tokens of a text."""
    bare, whole = (list(tokenizer("a", add_special_tokens=add)["input_ids"]) for add in (False, True))
    starts = (n for n in range(len(whole) - len(bare) + 1) if whole[n : n + len(bare)] == bare)
    first = next(starts, None)
    return ([], []) if first is None else (whole[:first], whole[first + len(bare) :])


def _token_limit(model: Any) -> int:
    """Return the maximum number of tokens: from max_seq_length, else max_position_embeddings, else 512."""
    limits = [model.max_seq_length, getattr(model.config, "max_position_embeddings", None)]
    return next((int(limit) for limit in limits if limit and limit < UNLIMITED_ABOVE), 512)
