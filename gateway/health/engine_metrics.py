"""What the /metrics of an engine say of its progress, and of its queue. Pure.

The names are those of vLLM (vllm/v1/metrics/loggers.py), SGLang (srt/observability/metrics_collector.py), llama.cpp
(tools/server, `--metrics`), text-embeddings-inference (core/src/queue.rs) and of our own services.
"""

from dataclasses import dataclass

# What changes at every step of an engine that generates. A step of vLLM that only reads a part of a long prompt shows
# in its KV cache alone; llama.cpp counts tokens when a request is done but every call of its decoder; our own service
# with transformers has vLLM's names, and counts the layers that it computes.
STEPS = frozenset({
    "vllm:prompt_tokens_total", "vllm:generation_tokens_total", "vllm:iteration_tokens_total_sum",
    "vllm:kv_cache_usage_perc",
    "sglang:prompt_tokens_total", "sglang:generation_tokens_total", "sglang:realtime_tokens_total",
    "sglang:num_used_tokens", "sglang:token_usage", "sglang:gen_throughput",
    "llamacpp:n_decode_total",
    "transformers_layers_total",
})  # fmt: skip
# What grows when a whole piece of work is done, which may take long.
PIECES = frozenset({
    "te_batch_next_tokens_sum", "embedding_computed_tokens_total", "transcription_audio_seconds_total",
})  # fmt: skip
# How many requests wait for their turn.
WAITING = frozenset({
    "vllm:num_requests_waiting", "sglang:num_queue_reqs", "llamacpp:requests_deferred", "te_queue_size",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class EngineReport:
    """What one page said. `work` is another one whenever work was done in between."""

    work: tuple[str, ...]
    # Whether it would be another one after every step.
    by_steps: bool
    waiting: int | None


def read(page: str) -> EngineReport:
    """Read Prometheus's text format; what cannot be understood is passed over."""
    work: list[str] = []
    by_steps = False
    waiting: float | None = None
    for line in page.splitlines():
        if line.startswith("#"):
            continue
        name = line.partition(" ")[0].partition("{")[0]
        if name in STEPS:
            by_steps = True
            work.append(line)
        elif name in PIECES:
            work.append(line)
        elif name in WAITING:
            try:
                waiting = (waiting or 0.0) + float(line.rpartition(" ")[2])
            except ValueError:
                continue
    return EngineReport(tuple(work), by_steps, None if waiting is None else int(waiting))
