"""Common part of the fast path and the general path: upstream head, provenance headers, accounting."""

from gateway.backends.backend import Backend
from gateway.endpoints import Endpoint
from gateway.http1.error_body import replacement
from gateway.http1.headers import Head
from gateway.relay.data_plane import ClientConnection, ParsedRequest, RelayContext
from gateway.relay.response import Response
from gateway.routing import Candidate
from gateway.telemetry.access_log import Line
from gateway.upstream.connection import UpstreamConnection
from kit.errors import ApiError, is_messages_api
from kit.web.middleware import request_id_from


class RelayedRequest:
    """One relayed request, from its head to its accounting."""

    __slots__ = ("began", "client", "context", "parsed", "request_id")

    def __init__(self, client: ClientConnection, context: RelayContext, parsed: ParsedRequest, began: float) -> None:
        """`began` is the monotonic time at which the head was complete."""
        self.client = client
        self.context = context
        self.parsed = parsed
        self.began = began
        given = parsed.head.request_id
        self.request_id = request_id_from(None if given is None else given.decode("latin-1"))
        # Until `account`.
        context.metrics.relaying += 1

    @property
    def endpoint(self) -> Endpoint:
        """The route."""
        return self.parsed.endpoint

    @property
    def head(self) -> Head:
        """The head of the client's request."""
        return self.parsed.head

    def upstream_head(self, backend: Backend, length: int, body: bytes = b"") -> bytes:
        """Return the head of the request to `backend`, and `body`, which is some or all of its `length` bytes."""
        return b"%b%b%b%bx-request-id: %b\r\ncontent-length: %d\r\n\r\n%b" % (
            backend.before_target,
            self.parsed.target,
            backend.after_target,
            self.parsed.head.forward,
            self.request_id.encode(),
            length,
            body,
        )

    def provenance_headers(self, attempts: int, candidate: Candidate | None = None, queue_s: float = 0.0) -> bytes:
        """Return the header lines that show which backend responded, after how many attempts.

        `candidate` is None for the gateway's own responses. `queue_s` is the time that the choice took.
        """
        request_id, head = self.request_id.encode(), self.parsed.head
        cors = self.context.cors_headers(head) if head.origin else b""
        if candidate is None:
            return b"x-attempts: %d\r\nx-request-id: %b\r\n%b" % (attempts, request_id, cors)
        return b"%bx-queue-ms: %.1f\r\nx-attempts: %d\r\nx-request-id: %b\r\n%b" % (
            candidate.response_headers,
            queue_s * 1000,
            attempts,
            request_id,
            cors,
        )

    def replacement(self, connection: UpstreamConnection, backend: Backend, body: bytes) -> ApiError | None:
        """Return the error to send in place of a backend's response, None to send that."""
        if connection.status < 400 or not connection.complete or b"content-encoding:" in connection.forward:
            return None
        engine = f" (engine {backend.engine})" if backend.engine else ""
        return replacement(self.endpoint.path, connection.status, body, backend.name + engine)

    def rendered(self, error: ApiError) -> tuple[bytes, bytes]:
        """Return the header lines and the body of `error` in the envelope of the request's route."""
        path = self.parsed.target.partition(b"?")[0].decode("latin-1")
        lines = b"content-type: application/json\r\n"
        if is_messages_api(path):
            # Where Anthropic's clients read the request's id.
            lines += b"request-id: %b\r\n" % self.request_id.encode("latin-1")
        return lines, error.encoded(path, self.request_id)

    def account(
        self,
        status: int,
        ended: float,
        first_byte: float,
        attempts: int,
        candidate: Candidate | None,
        streamed: bool = False,
    ) -> None:
        """Account for a finished request: metrics and access-log line.

        `ended` and `first_byte` are monotonic times; `candidate` is None if the request reached no backend.
        """
        began, path, context = self.began, self.parsed.endpoint.path, self.context
        ms = int((ended - began) * 10_000.0 + 0.5) / 10.0  # several times as fast as round()
        if candidate is None:
            model, line = None, Line(path, status, ms, self.client.address, self.request_id, attempts)
        else:
            backend, model = candidate.backend.name, candidate.offer.name
            line = Line(path, status, ms, self.client.address, self.request_id, attempts, backend, model)
        context.metrics.relaying -= 1
        context.metrics.count(path, status, first_byte - began, model if streamed else None)
        context.access_log.write(line)


class ForwardedRequest(RelayedRequest):
    """A relayed request, as far as forwarding needs it. Forwarding ends by `refuse` or `finish`."""

    __slots__ = ("response",)
    response: Response

    def refuse(self, error: ApiError) -> None:
        """Send an error, or end the response that has begun with one."""
        raise NotImplementedError

    def finish(self) -> None:
        """The response is complete."""
        raise NotImplementedError
