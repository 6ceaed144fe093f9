"""Request counters of one backend: this worker's and those of the other workers on the port. Pure."""

from collections import Counter
from dataclasses import dataclass, field

import msgspec

# How long a queue length from an engine's metrics stays valid, in seconds.
FRESH_S = 5.0


@dataclass(slots=True)
class Traffic:
    """This worker's requests at one backend. Tickets count them; the relay sets `last_byte_at`."""

    in_flight: int = 0
    requests: int = 0
    failures: int = 0
    # How requests ended, by outcome.
    outcomes: Counter[str] = field(default_factory=Counter)
    # Requests in flight that were at another backend when it crashed (`query_of_death`).
    suspects: int = 0
    # Monotonic time of the last byte received.
    last_byte_at: float = 0.0


@dataclass(slots=True)
class EngineQueue:
    """The engine's own metrics: the requests waiting there, when that was read, and when its work last progressed."""

    waiting: int = 0
    read_at: float = -FRESH_S
    progress_at: float = 0.0


class PeerTraffic(msgspec.Struct, array_like=True):
    """One worker's counters as it publishes them, or their sums over the other workers on the port."""

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
    # Until when any of them weighs it down, monotonic.
    full_until: float = 0.0
