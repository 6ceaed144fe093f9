"""Engine on PyTorch: sentence-transformers, with pooling and normalisation from the model's files."""

import gc
from collections.abc import Sequence
from typing import TYPE_CHECKING

from services.embedding.engines.interface import Text, Tokens
from services.embedding.engines.text_model import TextModel

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


# In tokens. On a CPU the same as OpenVINO's; a GPU computes thousands of tokens in the time of a kernel launch.
BATCH_COST_CPU = 64
BATCH_COST_GPU = 4096


class TorchEngine:
    """An embedding model or cross-encoder on a PyTorch device."""

    name = "sentence-transformers"

    def __init__(self, model: TextModel) -> None:
        self._model: TextModel | None = model
        self.device = str(model.model.device)
        self.batch_cost = BATCH_COST_CPU if self.device == "cpu" else BATCH_COST_GPU
        self.max_tokens = model.max_tokens
        self.vocabulary = model.vocabulary
        self.dimensions = model.dimensions
        self.special_tokens = model.special_tokens
        self.prompts = model.prompts

    def tokenize(
        self, texts: Sequence[Text], *, prompt: str | None, truncate_to: int | None, document_tokens: int | None = None
    ) -> list[Tokens]:
        """See `TextEngine.tokenize`."""
        return self._loaded.tokenize(texts, prompt=prompt, truncate_to=truncate_to, document_tokens=document_tokens)

    def run(self, batch: Sequence[Tokens]) -> "NDArray[np.float32]":
        """See `TextEngine.run`."""
        # Pooling that excludes the prompt accepts one prompt length per call.
        lengths = {item.prompt_length for item in batch}
        if len(lengths) == 1:
            return self._compute(batch)
        import numpy as np

        rows: dict[int, NDArray[np.float32]] = {}
        for length in lengths:
            places = [place for place, item in enumerate(batch) if item.prompt_length == length]
            rows |= zip(places, self._compute([batch[place] for place in places]), strict=True)
        return np.stack([rows[place] for place in range(len(batch))])

    def _compute(self, batch: Sequence[Tokens]) -> "NDArray[np.float32]":
        import torch

        features = {name: torch.from_numpy(array).to(self.device) for name, array in self._loaded.pad(batch).items()}
        with torch.inference_mode():
            rows: NDArray[np.float32] = self._loaded.forward(features, batch[0].prompt_length).cpu().numpy()
        return rows

    @property
    def _loaded(self) -> TextModel:
        assert self._model is not None, "engine is closed"
        return self._model

    async def aclose(self) -> None:
        """Release the weights and the GPU's memory."""
        self._model = None
        gc.collect()
        if self.device.startswith("cuda"):
            import torch

            torch.cuda.empty_cache()
