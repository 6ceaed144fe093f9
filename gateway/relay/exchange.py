"""One request on a client's connection, from its head to the end of its answer.

Everything happens in callbacks on one event loop. The states, and what ends each:

    gathering   the body is coming in                       its end, a refusal, the client leaving
    forwarding  the request is whole (gateway.forwarding)   the answer's end, an error, the client leaving

and within the second:

    connecting  a task opens a connection                   the connection, an error, its deadline, the client leaving
    waiting     sent; no byte has gone to the client yet    the first byte, an error (then another backend), deadline
    answering   bytes have gone to the client               the end, the backend's death, a pause too long (then another
                                                            backend goes on, where that can be done), the client leaving
"""

import time

import structlog

from gateway.backends.backend import Backend
from gateway.bodies.body import Body
from gateway.endpoints import Endpoint
from gateway.http1.headers import Head
from gateway.relay.accounting import account
from gateway.relay.attempt import Attempt
from gateway.relay.data_plane import NEVER, ClientConnection, RelayContext
from gateway.relay.forwarding import Forwarding
from gateway.relay.response import Response, provenance_headers
from gateway.relay.retry_budget import RequestTicket
from kit.errors import ApiError
from kit.web.middleware import request_id_from

log = structlog.get_logger(__name__)

# nginx's code for a client that left before its answer began.
CLIENT_LEFT = 499


class Exchange:
    """One relayed request. uvicorn keeps it in the place of its own request cycle and reads the first three fields."""

    def __init__(
        self,
        client: ClientConnection,
        context: RelayContext,
        endpoint: Endpoint,
        target: bytes,
        head: Head,
        *,
        http11: bool,
        keep_alive: bool,
        ticket: RequestTicket | None = None,
    ) -> None:
        """`ticket` is that of a request which has been sent already."""
        self.response_complete = False
        self.disconnected = False
        # Whether the body is whole; what to answer instead of relaying; what the body is gathered in.
        self.gathered = False
        self.refusal: ApiError | None = None
        self.body: Body | None = None
        self.client = client
        self.context = context
        self.endpoint = endpoint
        self.target = target
        self.head = head
        self.answer = Response(client.transport, http11=http11, keep_alive=keep_alive)
        self.request_id = request_id_from(None if head.request_id is None else head.request_id.decode("latin-1"))
        self._cors = context.cors(head) if head.origin else b""
        # When its head was there, a monotonic time.
        self.began = time.perf_counter()
        self._forwarding: Forwarding | None = None
        self.ticket = ticket or RequestTicket(context.metrics, context.budget)

    # What the client's connection calls.

    @property
    def keep_alive(self) -> bool:
        """Whether the client's connection stays open after this; uvicorn clears it when it stops."""
        return self.answer.keep_alive

    @keep_alive.setter
    def keep_alive(self, value: bool) -> None:
        self.answer.keep_alive = value

    @property
    def expects_continue(self) -> bool:
        """Whether the client waits for leave to send the body."""
        return self.head.expects_continue

    def add(self, data: bytes) -> None:
        """Take a piece of the body. Raises ApiError when it cannot be taken."""
        if self.body is not None and self.refusal is None and not self.response_complete:
            self.body.add(data)

    def run(self) -> None:
        """The request is whole and its turn has come: find a backend, or refuse it."""
        if self.refusal is not None or self.body is None:
            self.refuse(self.refusal or ApiError("Internal error: a request without a body."))
            return
        self._forwarding = Forwarding(self, self.body)
        self._forwarding.start()

    def adopt(self, body: Body, attempt: Attempt, queue_s: float) -> Forwarding:
        """Go on with a request that was sent already, as Forwarding.take_over; returns what the answer is to go to."""
        self._forwarding = Forwarding(self, body)
        self._forwarding.adopt(attempt, queue_s)
        return self._forwarding

    def client_left(self) -> None:
        """The client's connection has ended: so does the backend's, at once, whatever the state."""
        if self.response_complete:
            return
        self.disconnected = True
        self.keep_alive = False
        if self._forwarding is not None:
            self._forwarding.release("client_left")
        self.answer.status = self.answer.status or CLIENT_LEFT
        self.done()

    def client_full(self, full: bool) -> None:
        """The client reads more slowly than the backend writes, or has caught up."""
        if self._forwarding is not None:
            self._forwarding.client_full(full)

    def on_deadline(self) -> None:
        """The backend (or, where the client is full, the client) has been silent for too long."""
        if self._forwarding is None:
            return
        if self.client.full:
            self.client.transport.abort()
        else:
            self._forwarding.on_deadline()

    def on_stuck(self, backend: Backend) -> None:
        """This backend does nothing any more: if this request is there, it goes elsewhere."""
        if self._forwarding is not None and not self.response_complete:
            self._forwarding.on_stuck(backend)

    # What the forwarding calls.

    def provenance(self, served: bytes = b"") -> bytes:
        """All of our own header lines; `served` are those about the choice, where there was one."""
        attempts = self._forwarding.attempts if self._forwarding is not None else 0
        return provenance_headers(served, attempts, self.request_id, self._cors)

    def refuse(self, error: ApiError) -> None:
        """Answer with an error, or end the answer that has begun with one."""
        if self.response_complete:
            return
        if self._forwarding is not None:
            self._forwarding.release("refused")
        if self.answer.begun:
            self.answer.cut(error, self.endpoint.dialect)
            log.warning("answer cut", request_id=self.request_id, reason=error.message)
        else:
            if not self.gathered:
                self.keep_alive = False
            self.answer.refuse(error, self.provenance(), self.client.common_headers())
        self.done()

    def done(self) -> None:
        """The answer is written, or given up."""
        self.response_complete = True
        if self.body is not None:
            self.body.close()
        self.client.deadline = NEVER
        # Let go of: the two know each other, and only the garbage collector would find that out.
        forwarding, self._forwarding = self._forwarding, None
        account(self, forwarding)
        self.client.exchange_done(self)
