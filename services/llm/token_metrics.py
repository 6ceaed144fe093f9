"""What the transformers engine tells of its work on /metrics, under vLLM's names, so that one dashboard reads both.

The gateway takes a silent engine for a stuck one when these stand still: what counts as work must grow at every step.
"""

from collections.abc import Callable, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge

Take = Callable[[Sequence[int]], None]
# vLLM's labels; there is one engine.
LABELS = ("model_name", "engine")


class TokenMetrics:
    """The counters of one engine. May be counted up from any thread."""

    def __init__(self, registry: CollectorRegistry, *, model: str) -> None:
        def counter(name: str, documentation: str) -> Counter:
            return Counter(name, documentation, LABELS, registry=registry).labels(model, "0")

        def gauge(name: str, documentation: str) -> Gauge:
            return Gauge(name, documentation, LABELS, registry=registry).labels(model, "0")

        self._prompt = counter("vllm:prompt_tokens", "Tokens of prompts that have been read.")
        self._generation = counter("vllm:generation_tokens", "Tokens that have been generated.")
        self._running = gauge("vllm:num_requests_running", "Requests that are computed now.")
        self._waiting = gauge("vllm:num_requests_waiting", "Requests that wait to be computed.")
        self._layers = counter(
            "transformers_layers", "Layers of the model computed: grows while a long prompt is read, too."
        )

    def follow(self, prompt_tokens: int, take: Take) -> Take:
        """Return `take` for the tokens of one answer, which counts them, and the prompt's when the first comes."""
        unread = prompt_tokens

        def counted(tokens: Sequence[int]) -> None:
            nonlocal unread
            if tokens and unread:
                self._prompt.inc(unread)
                unread = 0
            self._generation.inc(len(tokens))
            take(tokens)

        return counted

    def watch_requests(self, in_flight: Callable[[], int], *, places: int) -> None:
        """Tell of the requests that `in_flight` counts, of which `places` are computed at once."""
        self._running.set_function(lambda: min(places, in_flight()))
        self._waiting.set_function(lambda: max(0, in_flight() - places))

    def watch_layers(self, model: Any) -> None:
        """Count the layers of `model` as they are computed, those that read images included."""
        from transformers.modeling_layers import GradientCheckpointingLayer  # what every layer is, in every model

        for module in model.modules():
            if isinstance(module, GradientCheckpointingLayer):
                module.register_forward_hook(lambda *_: self._layers.inc())
