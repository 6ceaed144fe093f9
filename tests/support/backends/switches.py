"""Switches of the fake backend: its faults and its normal behaviour."""

from dataclasses import dataclass


@dataclass
class Switches:
    """Behaviour of the backend. Durations in seconds, counts in tokens; None disables a fault."""

    model: str = "fake"
    kind: str = "llm"
    # Whether it is one of our services (reports its model in /health, resolves aliases) or a foreign server.
    ours: bool = True
    aliases: str = ""
    engine: str = "vllm"
    # Whether it supports vLLM's continue_final_message, and whether its text depends on the prompt.
    continues: bool = True
    marked: bool = False
    tokens: int = 4
    ttft: float = 0.0
    rate: float = 0.0
    # Faults of responses: a share of requests that get fail_status, with a Retry-After and a message; no response; a
    # reset before the first byte; a hang or a reset before token number N; a header sent byte by byte; bytes that are
    # not HTTP.
    fail_rate: float = 0.0
    fail_status: int = 500
    retry_after: str = ""
    fail_message: str = "switched to fail"
    hang: bool = False
    reset: bool = False
    hang_after: int | None = None
    reset_after: int | None = None
    # Report an engine crash in the stream, before token number N.
    tell_after: int | None = None
    slow_head: float = 0.0
    garbage: bool = False
    # A text that crashes the backend when a body contains it: a query of death.
    crash_on: str = ""
    # Framing of bodies: length, chunked, close. `close_idle` closes the connection after a response, unannounced;
    # `reset_reused` resets it when the next request begins to arrive, as when the close of an idle connection and a
    # request on it cross.
    framing: str = "length"
    close_idle: bool = False
    reset_reused: bool = False
    interim: bool = False
    # Content-Length of streams, in place of chunked encoding; 0 for none.
    stream_length: int = 0
    pad: int = 0
    # More fields of /health, and of each model in /v1/models, as a JSON object.
    model_fields: str = "{}"
    # Result of /health: healthy, loading, failed, error (500), silent, absent (404), forbidden (403). Inference is not
    # affected.
    health: str = "healthy"
    progress: float = 0.5
    # Counters in /metrics: no (404), steps (growing with each scrape), stalled (constant), pieces (of an endless
    # request), silent (no response); and the number of waiting requests that it reports.
    counts: str = "no"
    waiting: int = 0
    detail: str = "fetching"
    gpus: str = "ok"
    # With `gated`, every token of a stream waits for `FakeBackend.gate`.
    gated: bool = False
    # The bearer key that it requires: for inference, and as a foreign server for /v1/models.
    key: str = ""
