"""What is told of a relayed request when it has ended: the counters, and a line in the access log."""

import time
from typing import TYPE_CHECKING

from gateway.failover import Failover

if TYPE_CHECKING:
    from gateway.relay import Exchange


def record(exchange: "Exchange", forwarding: Failover | None) -> None:
    """Count and log one request; `forwarding` is what it did with its backends, None where it came to none."""
    ended = time.perf_counter()
    plane, path, status = exchange.plane, exchange.endpoint.path, exchange.answer.status
    began = exchange.began
    first_byte, streamed = ended, None
    fields: dict[str, object] = {
        "path": path,
        "status": status,
        "ms": round((ended - began) * 1000, 1),
        "client": exchange.client.address,
        "request_id": exchange.request_id,
        "attempts": 0,
    }
    if forwarding is not None:
        fields["attempts"] = forwarding.attempts
        attempt = forwarding.attempt
        if attempt is not None:
            fields["backend"] = attempt.backend.name
            fields["model"] = model = attempt.pair.offer.name
            if forwarding.first_byte is not None:
                first_byte = forwarding.first_byte
                if forwarding.wants.stream:
                    streamed = model
    plane.metrics.relaying -= 1
    plane.metrics.count(path, status, first_byte - began, streamed)
    plane.access_log.write(fields)
