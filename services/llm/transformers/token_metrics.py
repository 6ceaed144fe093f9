"""Prometheus metrics of the transformers engine, under vLLM's names, so that one dashboard shows both.

The gateway's stall detector uses them: a counter must increase with every step of the engine.
"""

from collections.abc import Callable, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge

Take = Callable[[Sequence[int]], None]
# vLLM's labels; there is one engine.
LABELS = ("model_name", "engine")


class TokenMetrics:
    """Metrics of one engine. Thread-safe."""

    def __init__(self, registry: CollectorRegistry, *, model: str) -> None:
        def counter(name: str, documentation: str) -> Counter:
            return Counter(name, documentation, LABELS, registry=registry).labels(model, "0")

        def gauge(name: str, documentation: str) -> Gauge:
            return Gauge(name, documentation, LABELS, registry=registry).labels(model, "0")

        self._prompt = counter("vllm:prompt_tokens", "Prompt tokens processed.")
        self._generation = counter("vllm:generation_tokens", "Tokens generated.")
        self._running = gauge("vllm:num_requests_running", "Requests being computed.")
        self._waiting = gauge("vllm:num_requests_waiting", "Requests waiting.")
        self._layers = counter("transformers_layers", "Model layers computed; also increases during a long prompt.")

    def follow(self, prompt_tokens: int, take: Take) -> Take:
        """Wrap `take` so that it counts the tokens of a response, and the prompt's tokens with the first one."""
        unread = prompt_tokens

        def counted(tokens: Sequence[int]) -> None:
            nonlocal unread
            if tokens and unread:
                self._prompt.inc(unread)
                unread = 0
            self._generation.inc(len(tokens))
            take(tokens)

        return counted

    def watch_requests(self, in_flight: Callable[[], int], *, slots: int) -> None:
        """Export the requests that `in_flight` counts, of which up to `slots` are being computed."""
        self._running.set_function(lambda: min(slots, in_flight()))
        self._waiting.set_function(lambda: max(0, in_flight() - slots))

    def watch_layers(self, model: Any) -> None:
        """Count computed layers of `model`, including those for images."""
        from transformers.modeling_layers import GradientCheckpointingLayer  # base class of the layers of all models

        for module in model.modules():
            if isinstance(module, GradientCheckpointingLayer):
                module.register_forward_hook(lambda *_: self._layers.inc())
