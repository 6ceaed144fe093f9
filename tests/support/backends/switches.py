"""The switches of the fake backend: which faults it shows, and how it answers otherwise."""

from dataclasses import dataclass


@dataclass
class Switches:
    """How the backend behaves. Durations in seconds, counts in tokens; None switches a fault off."""

    model: str = "fake"
    kind: str = "llm"
    # Whether it is one of our services (tells its model in /health, knows aliases) or a foreign server.
    ours: bool = True
    aliases: str = ""
    engine: str = "vllm"
    # Whether it knows vLLM's continue_final_message, and whether its text depends on the prompt.
    continues: bool = True
    marked: bool = False
    tokens: int = 4
    ttft: float = 0.0
    rate: float = 0.0
    # Faults of answers: a share of requests answered with fail_status; nothing ever said; a connection reset before a
    # byte; silence or a reset before token number N; a head that comes byte by byte; bytes that are no HTTP.
    fail_rate: float = 0.0
    fail_status: int = 500
    hang: bool = False
    reset: bool = False
    hang_after: int | None = None
    reset_after: int | None = None
    # A server that tells of its engine's death in the stream, before token number N.
    tell_after: int | None = None
    slow_head: float = 0.0
    garbage: bool = False
    # A text that kills the whole backend when a body holds it: a query of death.
    crash_on: str = ""
    # How a whole answer is framed: length, chunked, close. `close_idle` ends the connection after an answer unsaid;
    # `reset_reused` resets it when the next request begins to come, as when the end of an idle connection and a request
    # on it cross.
    framing: str = "length"
    close_idle: bool = False
    reset_reused: bool = False
    interim: bool = False
    # A Content-Length for streams, in place of chunks; 0 for none.
    stream_length: int = 0
    pad: int = 0
    # What /health says: healthy, loading, failed, error (500), silent, absent (404); real work is not touched by it.
    health: str = "healthy"
    progress: float = 0.5
    # What /metrics counts: no (404), steps (growing at each look), stalled (steps that do not grow), pieces (of a work
    # that does not end), silent (no answer at all); and how many requests it says are waiting.
    counts: str = "no"
    waiting: int = 0
    detail: str = "fetching"
    gpus: str = "ok"
    # With `gated`, every token of a stream waits for `FakeBackend.gate`.
    gated: bool = False
    key: str = ""
