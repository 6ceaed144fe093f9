"""Progress and queue length from an engine's /metrics. Pure.

The names are those of vLLM (vllm/v1/metrics/loggers.py), SGLang (srt/observability/metrics_collector.py), llama.cpp
(tools/server, `--metrics`), text-embeddings-inference (core/src/queue.rs) and of our own services.
"""

from dataclasses import dataclass

# Metrics that change with every step of a generating engine. A vLLM step that only reads a part of a long prompt shows
# in its KV cache usage alone. llama.cpp counts tokens at the end of a request, but every call of its decoder. Our
# service with transformers uses vLLM's names and counts the layers that it computes.
STEPS = frozenset({
    "vllm:prompt_tokens_total", "vllm:generation_tokens_total", "vllm:iteration_tokens_total_sum",
    "vllm:kv_cache_usage_perc",
    "sglang:prompt_tokens_total", "sglang:generation_tokens_total", "sglang:realtime_tokens_total",
    "sglang:num_used_tokens", "sglang:token_usage", "sglang:gen_throughput",
    "llamacpp:n_decode_total",
    "transformers_layers_total",
})  # fmt: skip
# Metrics that grow at the end of a batch or recording, which may take long.
BATCHES = frozenset({
    "te_batch_next_tokens_sum", "embedding_computed_tokens_total", "transcription_audio_seconds_total",
})  # fmt: skip
# Gauges of queued requests.
WAITING = frozenset({
    "vllm:num_requests_waiting", "sglang:num_queue_reqs", "llamacpp:requests_deferred", "te_queue_size",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class EngineReport:
    """Result of one scrape. `progress` differs between two scrapes if work was done in between."""

    progress: tuple[str, ...]
    # Whether `progress` changes with every step.
    has_steps: bool
    waiting: int | None


def read_metrics(page: str) -> EngineReport:
    """Parse Prometheus's text format; lines that cannot be parsed are skipped."""
    progress: list[str] = []
    has_steps = False
    waiting: float | None = None
    for line in page.splitlines():
        if line.startswith("#"):
            continue
        name = line.partition(" ")[0].partition("{")[0]
        if name in STEPS:
            has_steps = True
            progress.append(line)
        elif name in BATCHES:
            progress.append(line)
        elif name in WAITING:
            try:
                waiting = (waiting or 0.0) + float(line.rpartition(" ")[2])
            except ValueError:
                continue
    return EngineReport(tuple(progress), has_steps, None if waiting is None else int(waiting))
