"""Common part of the fast path and the general path: upstream head, provenance headers, accounting."""

from gateway.backends.backend import Backend
from gateway.relay.data_plane import ClientConnection, ParsedRequest, RelayContext
from gateway.routing import Candidate
from gateway.telemetry.access_log import Line
from kit.web.middleware import request_id_from


class RelayedRequest:
    """One relayed request, from its head to its accounting."""

    __slots__ = ("began", "client", "context", "cors", "endpoint", "head", "parsed", "request_id")

    def __init__(self, client: ClientConnection, context: RelayContext, parsed: ParsedRequest, began: float) -> None:
        """`began` is the monotonic time at which the head was complete."""
        self.client = client
        self.context = context
        self.parsed = parsed
        self.endpoint = parsed.endpoint
        self.head = head = parsed.head
        self.began = began
        self.request_id = request_id_from(None if head.request_id is None else head.request_id.decode("latin-1"))
        self.cors = context.cors_headers(head) if head.origin else b""
        # Until `account`.
        context.metrics.relaying += 1

    def upstream_head(self, backend: Backend, length: int) -> bytes:
        """Return the head of the request to `backend` with a body of `length` bytes."""
        return b"%b%b%b%bx-request-id: %b\r\ncontent-length: %d\r\n\r\n" % (
            backend.before_target,
            self.parsed.target,
            backend.after_target,
            self.head.forward,
            self.request_id.encode("latin-1"),
            length,
        )

    def provenance_headers(self, attempts: int, candidate: Candidate | None = None, queue_s: float = 0.0) -> bytes:
        """Return the header lines that show which backend responded, after how many attempts.

        `candidate` is None for the gateway's own responses. `queue_s` is the time that the choice took.
        """
        request_id = self.request_id.encode("latin-1")
        if candidate is None:
            return b"x-attempts: %d\r\nx-request-id: %b\r\n%b" % (attempts, request_id, self.cors)
        return b"%bx-queue-ms: %.1f\r\nx-attempts: %d\r\nx-request-id: %b\r\n%b" % (
            candidate.response_headers,
            queue_s * 1000,
            attempts,
            request_id,
            self.cors,
        )

    def account(
        self,
        status: int,
        ended: float,
        first_byte: float,
        attempts: int,
        candidate: Candidate | None,
        *,
        streamed: bool,
    ) -> None:
        """Account for a finished request: metrics and access-log line.

        `ended` and `first_byte` are monotonic times; `candidate` is None if the request reached no backend.
        """
        began, path, context = self.began, self.endpoint.path, self.context
        ms = int((ended - began) * 10_000.0 + 0.5) / 10.0  # several times as fast as round()
        if candidate is None:
            model, line = None, Line(path, status, ms, self.client.address, self.request_id, attempts)
        else:
            backend, model = candidate.backend.name, candidate.offer.name
            line = Line(path, status, ms, self.client.address, self.request_id, attempts, backend, model)
        context.metrics.relaying -= 1
        context.metrics.count(path, status, first_byte - began, model if streamed else None)
        context.access_log.write(line)
