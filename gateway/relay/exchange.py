"""The general path of a relayed request on a client's connection, from its head to the end of its response.

Everything happens in callbacks on one event loop. An exchange has an `ExchangeState`; while it is forwarded, its
present attempt has an `AttemptState` and its response a `ResponseState`.
"""

from enum import Enum

import structlog

from gateway.backends.backend import Backend
from gateway.bodies.body import Body
from gateway.relay.attempt import Attempt
from gateway.relay.data_plane import ClientConnection, ParsedRequest, RelayContext
from gateway.relay.deadline import NEVER, now
from gateway.relay.forwarding import Forwarding
from gateway.relay.relayed_request import ForwardedRequest
from gateway.relay.response import BEGUN, Response
from gateway.routing import RoutingRequest
from kit.errors import ApiError

log = structlog.get_logger(__name__)

# nginx's status code for a client that left before the end of its response.
CLIENT_LEFT = 499


class ExchangeState(Enum):
    """The state of an exchange, and what ends it.

    RECEIVING      the body is arriving                           its end, `refuse`, `client_left`
    RECEIVED       complete: waiting for its turn, then forwarded `finish`, `refuse`, `client_left`
    COMPLETE       the response is written                        final
    REFUSED_EARLY  an error is written, but body may still arrive final
    ABANDONED      the client has left                            final
    """

    RECEIVING = "receiving"
    RECEIVED = "received"
    COMPLETE = "complete"
    REFUSED_EARLY = "refused early"
    ABANDONED = "abandoned"


RECEIVING, RECEIVED = ExchangeState.RECEIVING, ExchangeState.RECEIVED


class Exchange(ForwardedRequest):
    """One relayed request. Takes the place of uvicorn's request cycle, which reads and writes the first properties."""

    __slots__ = ("_forwarding", "body", "refusal", "state")

    def __init__(
        self, client: ClientConnection, context: RelayContext, parsed: ParsedRequest, *, http11: bool, keep_alive: bool
    ) -> None:
        super().__init__(client, context, parsed, now())
        self.state = RECEIVING
        # The error to send instead of relaying the request.
        self.refusal: ApiError | None = None
        self.body: Body | None = None
        self.response = Response(client.transport, http11=http11, keep_alive=keep_alive)
        self._forwarding: Forwarding | None = None

    # Read and written by the client's connection.

    @property
    def response_complete(self) -> bool:
        """Whether nothing more is sent."""
        return self.state is not RECEIVING and self.state is not RECEIVED

    @property
    def keep_alive(self) -> bool:
        """Whether the client's connection stays open; uvicorn clears it on shutdown."""
        return self.response.keep_alive

    @keep_alive.setter
    def keep_alive(self, value: bool) -> None:
        self.response.keep_alive = value

    @property
    def is_received(self) -> bool:
        """Whether the request is complete and its response is not."""
        return self.state is RECEIVED

    def add(self, data: bytes) -> None:
        """Add a piece of the body. Raises ApiError if it cannot be accepted."""
        if self.body is not None and self.refusal is None and self.state is RECEIVING:
            self.body.add(data)

    def run(self) -> None:
        """Forward or refuse the request: it is complete and its turn has come."""
        if self.refusal is not None:
            self.refuse(self.refusal)
            return
        assert self.body is not None
        self._forwarding = Forwarding(self, self.body)
        self._forwarding.start()

    def adopt(self, body: Body, attempt: Attempt, request: RoutingRequest, queue_s: float) -> Forwarding:
        """Continue a request that the fast path has sent; return the listener for its connection."""
        self.body, self.state = body, RECEIVED
        self._forwarding = Forwarding(self, body)
        self._forwarding.adopt(attempt, request, queue_s)
        return self._forwarding

    def client_left(self) -> None:
        """End the exchange and the backend's connection at once, because the client's has ended."""
        if self.response_complete:
            return
        self.keep_alive = False
        if self._forwarding is not None:
            self._forwarding.release("client_left")
        self._end(ExchangeState.ABANDONED, CLIENT_LEFT)

    def client_full(self, full: bool) -> None:
        """Apply the client's flow control to the backend."""
        if self._forwarding is not None:
            self._forwarding.client_full(full)

    def on_deadline(self) -> None:
        """Check a silent backend, or abort the connection of a client that does not read."""
        if self._forwarding is None:
            return
        if self.client.full:
            self.client.transport.abort()
        else:
            self._forwarding.on_deadline()

    def on_stuck(self, backend: Backend) -> None:
        """Fail over if the request is at this stuck backend."""
        if self._forwarding is not None and not self.response_complete:
            self._forwarding.on_stuck(backend)

    # Called by forwarding.

    def refuse(self, error: ApiError) -> None:
        """Send an error, or end the response that has begun with one."""
        if self.response_complete:
            return
        forwarding = self._forwarding
        if forwarding is not None:
            forwarding.release("refused")
        state = ExchangeState.COMPLETE
        if self.response.state in BEGUN:
            self.response.cut(error, self.endpoint.dialect, self.request_id)
            log.warning("response cut", request_id=self.request_id, reason=error.message)
        else:
            if self.state is RECEIVING:
                self.keep_alive = False
                state = ExchangeState.REFUSED_EARLY
            provenance = self.provenance_headers(forwarding.attempts if forwarding is not None else 0)
            self.response.refuse(error, self.rendered(error), provenance, self.client.server_state.default_headers)
        self._end(state)

    def finish(self) -> None:
        """End the exchange: its response is complete."""
        self._end(ExchangeState.COMPLETE)

    def _end(self, state: ExchangeState, outcome: int | None = None) -> None:
        """Account for the request by its `outcome`, the status of the response by default."""
        self.state = state
        status = outcome or self.response.status
        if self.body is not None:
            self.body.close()
        self.client.deadline.at = NEVER
        # Without this reference cycle no garbage collection is needed.
        forwarding, self._forwarding = self._forwarding, None
        ended = now()
        if forwarding is None:
            self.account(status, ended, ended, 0, None, streamed=False)
        else:
            attempt, first_byte = forwarding.attempt, forwarding.first_byte
            self.account(
                status,
                ended,
                ended if first_byte is None else first_byte,
                forwarding.attempts,
                None if attempt is None else attempt.candidate,
                streamed=first_byte is not None and forwarding.request.stream and self.response.status < 300,
            )
        self.client.exchange_done(self)
