"""What is told of a relayed request when it has ended: the counters, and a line in the access log."""

import time
from typing import TYPE_CHECKING

from gateway.relay.failover import Failover
from gateway.telemetry.access_log import Line

if TYPE_CHECKING:
    from gateway.relay.exchange import Exchange


def account(exchange: "Exchange", forwarding: Failover | None) -> None:
    """Count and log one request; `forwarding` is what it did with its backends, None where it came to none."""
    ended = time.perf_counter()
    context, path, status = exchange.context, exchange.endpoint.path, exchange.answer.status
    began = exchange.began
    first_byte, streamed = ended, None
    line = Line(path, status, round((ended - began) * 1000, 1), exchange.client.address, exchange.request_id, 0)
    if forwarding is not None:
        line.attempts = forwarding.attempts
        attempt = forwarding.attempt
        if attempt is not None:
            line.backend = attempt.backend.name
            line.model = model = attempt.candidate.offer.name
            if forwarding.first_byte is not None:
                first_byte = forwarding.first_byte
                if forwarding.request.stream:
                    streamed = model
    exchange.ticket.end()
    context.metrics.count(path, status, first_byte - began, streamed)
    context.access_log.write(line)
