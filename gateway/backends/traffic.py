"""Request counters of one backend: this worker's and those of the other workers on the port. Pure."""

from collections import Counter
from dataclasses import dataclass

# How long a queue length from an engine's metrics stays valid, in seconds.
FRESH_S = 5.0


class Traffic:
    """This worker's requests at one backend. Tickets count them; the relay sets `last_byte_at`."""

    __slots__ = ("failures", "in_flight", "last_byte_at", "outcomes", "requests", "suspects")

    def __init__(self) -> None:
        self.in_flight = 0
        self.requests = 0
        self.failures = 0
        # How requests ended, by outcome.
        self.outcomes: Counter[str] = Counter()
        # Requests in flight that were at another backend when it crashed (`query_of_death`).
        self.suspects = 0
        # Monotonic time of the last byte received.
        self.last_byte_at = 0.0


@dataclass(slots=True)
class EngineQueue:
    """The engine's own metrics: the requests waiting there, when that was read, and when its work last progressed."""

    waiting: int = 0
    read_at: float = -FRESH_S
    progress_at: float = 0.0


@dataclass(slots=True)
class PeerTraffic:
    """Sums over the other workers on the port, as they last published them."""

    in_flight: int = 0
    queued: int = 0
    waiting_kb: float = 0.0
    requests: int = 0
    failures: int = 0
    # When any of them last received a byte or saw progress, monotonic.
    last_sign_at: float = 0.0
    # The latest queue length that any of them read from the engine's metrics, and when.
    engine_waiting: int = 0
    engine_read_at: float = -FRESH_S
