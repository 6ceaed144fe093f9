"""What is told of a relayed request when it has ended: the counters, and a line in the access log."""

import time

from gateway.attempt import Attempt
from gateway.plane import Plane


def record(
    plane: Plane,
    path: str,
    status: int,
    *,
    began: float,
    first_byte: float | None,
    stream: bool,
    client: str | None,
    request_id: str,
    attempts: int,
    last: Attempt | None,
) -> None:
    """Count and log one request. Times are monotonic; `last` is the attempt that answered, or failed last."""
    ended = time.perf_counter()
    streamed = last.pair.offer.name if last is not None and first_byte is not None and stream else None
    plane.metrics.relaying -= 1
    plane.metrics.count(path, status, (ended if first_byte is None else first_byte) - began, streamed)
    fields: dict[str, object] = {
        "path": path,
        "status": status,
        "ms": round((ended - began) * 1000, 1),
        "client": client,
        "request_id": request_id,
        "attempts": attempts,
    }
    if last is not None:
        fields |= {"backend": last.backend.name, "model": last.pair.offer.name}
    plane.access_log.write(fields)
