"""Sampling of the next token, with options and random numbers per request.

The order is vLLM's (`vllm/v1/sample/sampler.py`), so that both engines behave alike:
bias, penalties, temperature, min_p, top_k, top_p.
"""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from services.llm.validation.options import Sampling

if TYPE_CHECKING:
    import torch

# Below this a temperature means greedy, as in vLLM; dividing by less overflows.
GREEDY_BELOW = 1e-5


class Sampler:
    """Sampling of one request. `choose` is called once per token, not concurrently."""

    def __init__(self, options: Sampling, *, prompt: Sequence[int], ends: Sequence[int]) -> None:
        """`prompt` are the prompt's tokens, `ends` the end tokens."""
        self._options = options
        self._ends = list(ends)
        self._prompt = sorted(set(prompt)) if options.repetition_penalty != 1.0 else []
        self._chosen: Counter[int] = Counter()
        self._generator: torch.Generator | None = None
        self._bias: tuple[torch.Tensor, torch.Tensor] | None = None

    def choose(self, scores: "torch.Tensor") -> int:
        """Return the next token. `scores` are the model's logits (float32, one dimension); they may be modified."""
        import torch

        options = self._options
        self._adjust(scores)
        if options.temperature < GREEDY_BELOW:
            token = int(torch.argmax(scores))
        else:
            probabilities = torch.softmax(scores / options.temperature, dim=-1)
            token = self._draw(probabilities)
        self._chosen[token] += 1
        return token

    def _adjust(self, scores: "torch.Tensor") -> None:
        import torch

        options = self._options
        size = scores.shape[-1]
        if options.logit_bias:
            if self._bias is None:
                known = {token: bias for token, bias in options.logit_bias.items() if token < size}
                self._bias = (
                    torch.tensor(list(known), dtype=torch.long, device=scores.device),
                    torch.tensor(list(known.values()), dtype=scores.dtype, device=scores.device),
                )
            tokens, biases = self._bias
            scores[tokens] += biases
        if self._ends and self._chosen.total() < options.min_tokens:
            scores[self._ends] = -torch.inf
        if options.repetition_penalty != 1.0:
            seen = torch.tensor(sorted({*self._prompt, *self._chosen}), dtype=torch.long, device=scores.device)
            values = scores[seen]
            penalty = options.repetition_penalty
            scores[seen] = torch.where(values > 0, values / penalty, values * penalty)
        if self._chosen and (options.presence_penalty or options.frequency_penalty):
            tokens = torch.tensor(list(self._chosen), dtype=torch.long, device=scores.device)
            counts = torch.tensor(list(self._chosen.values()), dtype=scores.dtype, device=scores.device)
            scores[tokens] -= options.presence_penalty + options.frequency_penalty * counts

    def _draw(self, probabilities: "torch.Tensor") -> int:
        import torch

        options = self._options
        if options.min_p > 0:
            probabilities = probabilities.masked_fill(probabilities < options.min_p * probabilities.max(), 0.0)
        if self._generator is None:
            self._generator = torch.Generator(device=probabilities.device)
            if options.seed is None:
                self._generator.seed()
            else:
                self._generator.manual_seed(options.seed)
        cut = 0 < options.top_k < probabilities.shape[-1]
        if not cut and options.top_p >= 1:
            return int(torch.multinomial(probabilities, 1, generator=self._generator))
        count = options.top_k if cut else probabilities.shape[-1]
        best, tokens = torch.topk(probabilities, count)
        if options.top_p < 1:
            best = best / best.sum()
            before = torch.cumsum(best, dim=-1) - best
            # The first is always kept: nothing comes before it.
            best = best.masked_fill(before > options.top_p, 0.0)
        return int(tokens[torch.multinomial(best, 1, generator=self._generator)])
