"""One request's way through the gateway: choose a backend, send, try another, pass the answer on.

Everything happens in callbacks on one event loop. The states, and what ends each:

    gathering   the body is coming in                       its end, a refusal, the client leaving
    connecting  a task opens a connection                   the connection, an error, its deadline, the client leaving
    waiting     sent; no byte has gone to the client yet    the first byte, an error (then another backend), deadline
    answering   bytes have gone to the client               the end, the backend's death, a pause too long

An attempt (gateway.attempt) holds a connection and a place at its backend until it is released, on every path.
"""

import time
from collections.abc import Callable

import structlog

from gateway.answer import Answer, is_stream, truth_of_choice, truth_of_request
from gateway.attempt import Attempt
from gateway.bodies import Body, JsonBody
from gateway.continuation import ROUTES, Ending, NotFaithful, go_on
from gateway.endpoints import Endpoint
from gateway.head import Head, origin_form
from gateway.plane import NEVER, Client, Plane
from gateway.record import record
from gateway.routing import Wants
from gateway.tries import Tries
from gateway.upstream import UpstreamConnection
from kit.errors import ApiError, BadGateway, NoHealthyBackend, UpstreamTimeout
from kit.middleware import request_id_from

log = structlog.get_logger(__name__)

# Answers with which a backend says that another might do better.
ELSEWHERE = frozenset({502, 503, 504})
# nginx's code for a client that left before its answer began.
CLIENT_LEFT = 499

now = time.perf_counter


class Exchange:
    """One relayed request. uvicorn keeps it in the place of its own request cycle and reads the first three fields."""

    def __init__(
        self,
        client: Client,
        plane: Plane,
        endpoint: Endpoint,
        target: bytes,
        head: Head,
        *,
        http11: bool,
        keep_alive: bool,
    ) -> None:
        self.response_complete = False
        self.disconnected = False
        # Whether the body is whole; what to answer instead of relaying; what the body is gathered in.
        self.gathered = False
        self.refusal: ApiError | None = None
        self.body: Body | None = None
        self._client = client
        self._plane = plane
        self._endpoint = endpoint
        self._target = target
        self._head = head
        self._answer = Answer(client.transport, http11=http11, keep_alive=keep_alive)
        self._cors = plane.cors(head) if head.origin else b""
        self.request_id = request_id_from(None if head.request_id is None else head.request_id.decode("latin-1"))
        self._began = self._ready = now()
        self._queue_s = 0.0
        self._first_byte: float | None = None
        self._wants = Wants(endpoint)
        self._tries = Tries(plane)
        # The present attempt, or the last one.
        self._attempt: Attempt | None = None
        # Where another backend goes on with the answer: what was first asked, and whether it was sent what was said.
        self._original: JsonBody | None = None
        self._carries = False
        plane.metrics.relaying += 1

    # What the client's connection calls.

    @property
    def keep_alive(self) -> bool:
        """Whether the client's connection stays open after this; uvicorn clears it when it stops."""
        return self._answer.keep_alive

    @keep_alive.setter
    def keep_alive(self, value: bool) -> None:
        self._answer.keep_alive = value

    @property
    def expects_continue(self) -> bool:
        """Whether the client waits for leave to send the body."""
        return self._head.expects_continue

    def add(self, data: bytes) -> None:
        """Take a piece of the body. Raises ApiError when it cannot be taken."""
        if self.body is not None and self.refusal is None and not self.response_complete:
            self.body.add(data)

    def run(self) -> None:
        """The request is whole and its turn has come: find a backend, or refuse it."""
        if self.refusal is not None or self.body is None:
            self.refuse(self.refusal or ApiError("Internal error: a request without a body."))
            return
        self._ready = now()
        self._guarded(self._begin, self.body)

    def refuse(self, error: ApiError) -> None:
        """Answer with an error, or end the answer that has begun with one."""
        if self.response_complete:
            return
        self._release("refused")
        if self._answer.begun:
            self._cut(error)
            return
        if not self.gathered:
            self.keep_alive = False
        self._answer.refuse(error, self._truth(), self._client.common_headers())
        self._done()

    def client_left(self) -> None:
        """The client's connection has ended: so does the backend's, at once, whatever the state."""
        if self.response_complete:
            return
        self.disconnected = True
        self.keep_alive = False
        self._release("client_left")
        self._answer.status = self._answer.status or CLIENT_LEFT
        self._done()

    def client_full(self, full: bool) -> None:
        """The client reads more slowly than the backend writes, or has caught up."""
        connection = self._attempt.connection if self._attempt is not None else None
        if connection is not None:
            if full:
                connection.pause()
            else:
                connection.resume()

    def on_deadline(self) -> None:
        """The backend (or, where the client is full, the client) has been silent for too long."""
        attempt = self._attempt
        if attempt is None:
            return
        if self._client.full:
            self._client.transport.abort()
            return
        limit = self._plane.limits.stream_idle_s if self._answer.begun else self._plane.limits.first_byte_s
        name = attempt.backend.name
        error = UpstreamTimeout(
            f"{name} sent nothing for {limit:g} s. Try again, ask for fewer tokens, or look at its log."
        )
        self._failed(attempt, "timeout", error)

    # Choosing and sending.

    def _guarded(self, step: Callable[..., None], *arguments: object) -> None:
        """Take a step. Where it fails, answer with the error: nothing else would ever end this exchange."""
        try:
            step(*arguments)
        except ApiError as error:
            self.refuse(error)
        except Exception as bug:
            log.error("bug", request_id=self.request_id, exc_info=bug)
            self.refuse(ApiError(f"Internal error. The log has its cause under request id {self.request_id}."))

    def _begin(self, body: Body) -> None:
        self._wants = body.wants()
        self._try_next(None)

    def _try_next(self, failure: ApiError | None) -> None:
        """Go to the best backend not tried yet; `failure` is why the last one did not do."""
        at = now()
        try:
            choice = self._tries.choose(self._wants, at)
        except ApiError as error:
            # The router's message names every backend that is down and why; only a deadline says more.
            self.refuse(error if failure is None or isinstance(error, NoHealthyBackend) else failure)
            return
        if choice is None:
            assert failure is not None, "the first choice is never empty"
            self.refuse(failure)
            return
        if failure is None:
            self._queue_s = at - self._ready
        if failure is None or self._answer.begun:
            self._client.deadline = at + self._plane.limits.first_byte_s
        attempt = self._attempt = self._tries.begin(choice, self._wants, at)
        connection = attempt.backend.pool.take()
        if connection is None:
            self._connect(attempt)
        else:
            self._send(connection)

    def _connect(self, attempt: Attempt) -> None:
        attempt.connect(
            self._plane.limits.connect_s, lambda connection: self._guarded(self._send, connection), self._unreachable
        )

    def _unreachable(self, error: Exception) -> None:
        attempt = self._attempt
        assert attempt is not None
        backend = attempt.backend
        timed_out = isinstance(error, TimeoutError)
        reason = f"no connection within {self._plane.limits.connect_s:g} s" if timed_out else f"cannot connect: {error}"
        backend.observe("unhealthy", reason)
        error = NoHealthyBackend(f"{backend.name} cannot be reached ({reason}). Check that it runs.", retry_after=2)
        self._failed(attempt, "unreachable", error)

    def _send(self, connection: UpstreamConnection) -> None:
        attempt = self._attempt
        assert attempt is not None
        assert self.body is not None
        # Held before anything can go wrong.
        attempt.connection = connection
        backend = attempt.backend
        length, pieces = self.body.pieces(attempt.pair.upstream_model(self._wants.model))
        head = b"%b%b%b%bx-request-id: %b\r\ncontent-length: %d\r\n\r\n" % (
            backend.before_target,
            origin_form(self._target),
            backend.after_target,
            self._head.forward,
            self.request_id.encode("latin-1"),
            length,
        )
        attempt.begin(self, head + next(pieces, b""), pieces)
        self.on_room()

    # What the backend's connection calls.

    def on_room(self) -> None:
        """The backend takes more of the body."""
        if self._attempt is not None and self._attempt.pump():
            # An upload shows progress: the answer's deadline starts when its last byte has gone.
            self._client.deadline = now() + self._plane.limits.first_byte_s

    def on_answer(self, connection: UpstreamConnection) -> None:
        """Pass on what has come."""
        answer, attempt = self._answer, self._attempt
        assert attempt is not None
        backend = attempt.backend
        if answer.awaited and not self._accept(connection, attempt):
            return
        if connection.complete and answer.is_cut_short(connection):
            self.on_lost(connection, "it closed the connection in the middle of a stream")
            return
        backend.last_byte = at = now()
        data = answer.ready(connection)
        if data is None:
            return
        if answer.begun:
            answer.go_on(data, last=connection.complete)
        else:
            self._first_byte = at
            well = connection.status < 300
            attempt.ticket.first_byte(at, well=well)
            if well:
                (backend.ttft if self._wants.stream else backend.whole).observe(at - attempt.sent, at)
            answer.begin(connection, data, self._truth())
        if connection.complete:
            attempt.complete(connection, f"http_{answer.status}")
            self._done()
            return
        self._client.deadline = at + self._plane.limits.stream_idle_s
        if self._client.full:
            connection.pause()

    def on_lost(self, connection: UpstreamConnection, reason: str) -> None:
        """The connection broke before the answer was complete."""
        attempt = self._attempt
        assert attempt is not None
        attempt.lost()
        if connection.reused and not connection.any_byte:
            # It was closed for being idle just as this request went out (RFC 9112, 9.3.1); no fault of the backend.
            self._connect(attempt)
            return
        name = attempt.backend.name
        error = BadGateway(f"{name} broke off: {reason}. Try again; GET /services shows how it is.")
        self._failed(attempt, "broken", error)

    def _accept(self, connection: UpstreamConnection, attempt: Attempt) -> bool:
        """Look at a new answer's status; False when another backend is asked instead."""
        status, backend = connection.status, attempt.backend
        if self._answer.begun and (status != 200 or not is_stream(connection)):
            self._failed(attempt, f"http_{status}", BadGateway(f"{backend.name} answered {status} to what remained."))
            return False
        if status >= 500:
            if status in ELSEWHERE and self._tries.another(self._wants, now()):
                error = BadGateway(f"{backend.name} answered {status}. Try again in a moment.")
                self._failed(attempt, f"http_{status}", error)
                return False
            backend.failures += 1
        if self._answer.begun:
            attempt.ticket.first_byte(now(), well=True)
            self._answer.rejoin(carried=self._carries)
        else:
            self._answer.accept(connection, keeps=self._endpoint.path in ROUTES)
        return True

    # Going elsewhere.

    def _failed(self, attempt: Attempt, outcome: str, error: ApiError) -> None:
        """The attempt has come to nothing, `error` being why: go to another backend, or end with it."""
        backend = attempt.backend
        backend.failures += 1
        attempt.release(outcome)
        backend.suspect()
        self._answer.await_another()
        self._guarded(self._go_on if self._answer.begun else self._try_next, error)

    def _go_on(self, error: ApiError) -> None:
        """The answer has begun: let another backend say the rest, where that can be done."""
        body, said, attempt = self.body, self._answer.said, self._attempt
        assert attempt is not None
        if said is None or not isinstance(body, JsonBody):
            self._cut(error)
            return
        model = attempt.pair.offer.name
        try:
            step = go_on(self._endpoint.path, (self._original or body).data, model, said)
        except NotFaithful as reason:
            self._cut(BadGateway(f"{error.message} The answer cannot be gone on with elsewhere: {reason}."))
            return
        if isinstance(step, Ending):
            self._answer.go_on(step.events, last=True)
            self._done()
            return
        self._original = self._original or body
        self.body = body.replaced(step.body)
        self._carries = step.carries
        self._wants = self.body.wants()
        self._tries.go_on(self._wants, said.tokens, prefills=step.prefills)
        log.warning("answer goes on elsewhere", request_id=self.request_id, reason=error.message, tokens=said.tokens)
        self._try_next(error)

    def _truth(self) -> bytes:
        """Our own headers: who answered with what, after how many tries."""
        served = b""
        attempt = self._attempt
        if attempt is not None and attempt.held:
            served = truth_of_choice(attempt.backend.served_by, attempt.pair.offer.name, self._queue_s)
        return truth_of_request(served, self._tries.count, self.request_id, self._cors)

    # Ends.

    def _cut(self, error: ApiError) -> None:
        """The answer has begun and cannot be ended as it should: say so in a way that the client notices."""
        self._answer.cut(error, self._endpoint.dialect)
        log.warning("answer cut", request_id=self.request_id, reason=error.message)
        self._done()

    def _release(self, outcome: str) -> None:
        if self._attempt is not None:
            self._attempt.release(outcome)

    def _done(self) -> None:
        self.response_complete = True
        for body in (self.body, self._original):
            if body is not None:
                body.close()
        self._client.deadline = NEVER
        record(
            self._plane,
            self._endpoint.path,
            self._answer.status,
            began=self._began,
            first_byte=self._first_byte,
            stream=self._wants.stream,
            client=self._client.address,
            request_id=self.request_id,
            attempts=self._tries.count,
            last=self._attempt,
        )
        self._client.exchange_done(self)
