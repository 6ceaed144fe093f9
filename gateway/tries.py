"""Where a request has been and where it may still go."""

from gateway.attempt import Attempt
from gateway.backends import Backend
from gateway.deaths import digest_of
from gateway.plane import Plane
from gateway.routing import Choice, Wants
from kit.errors import ApiError


class Tries:
    """The attempts of one request, the present one last."""

    __slots__ = ("_limit", "_model", "_plane", "_tokens", "_tried", "count", "digest")

    def __init__(self, plane: Plane) -> None:
        self._plane = plane
        self._tried: list[Backend] = []
        self._limit = plane.limits.max_attempts
        # The model that has begun to answer, and how much it had said when it was last gone on with, in tokens.
        self._model: str | None = None
        self._tokens = 0
        self.count = 0
        # What names the request, once a backend has died with it or with another one like it.
        self.digest: bytes | None = None
        plane.budget.requests += 1

    def check(self, path: str, body: bytes, now: float) -> None:
        """Raises CrashedBackend for a request of which backends have died."""
        self.digest = self._plane.deaths.known(path, body, now)

    def choose(self, wants: Wants, now: float) -> Choice | None:
        """The best backend not tried yet, or None when there is none or enough were tried.

        Raises what routing raises. `now` is a monotonic time.
        """
        if self.count >= self._limit:
            return None
        choice = self._plane.router.choose(wants, now, tried=self._tried)
        if choice is not None and self._model not in (None, choice.pair.offer.name):
            # A fallback goes on with no other model's answer.
            return None
        return choice

    def may_retry(self, now: float, *, take: bool = True) -> bool:
        """Whether the budget of all requests has room for one more attempt of this one; with `take` it is used."""
        budget, in_flight = self._plane.budget, self._plane.metrics.relaying
        return budget.take(in_flight, now) if take else budget.room(in_flight, now)

    def another(self, wants: Wants, now: float) -> bool:
        """Whether there is one, and room to try it."""
        try:
            return self.choose(wants, now) is not None and self.may_retry(now, take=False)
        except ApiError:
            return False

    def can_go_on(self, wants: Wants, *, prefills: bool) -> bool:
        """Whether a stream could go on at a backend other than the present one."""
        try:
            pairs = self._plane.router.ask(wants)
        except ApiError:
            return False
        return any(pair.backend is not self._tried[-1] and (pair.backend.prefills or not prefills) for pair in pairs)

    def died(self, attempt: Attempt, path: str, body: bytes, now: float) -> bool:
        """The backend was lost with the request; whether it died of it, as far as can be told (gateway.deaths)."""
        digest = self.digest = self.digest or digest_of(path, body)
        served_s = now - attempt.sent
        return self._plane.deaths.died(attempt.backend, digest, len(body), now, served_s=served_s)

    def answered(self, path: str, body: bytes) -> None:
        """The request got its answer."""
        self._plane.deaths.cleared(path, body)

    def go_on(self, wants: Wants, tokens: int, *, prefills: bool) -> None:
        """A stream that has said `tokens` goes on elsewhere: the count begins anew if it came further since last time.

        With `prefills`, only backends that can continue a message count. Raises what routing raises.
        """
        self._model = wants.model
        if tokens > self._tokens:
            self._tokens = tokens
            self._limit = self.count + self._plane.limits.max_attempts
            del self._tried[:-1]
        if prefills:
            pairs = self._plane.router.ask(wants)
            self._tried += [pair.backend for pair in pairs if not pair.backend.prefills]

    def begin(self, choice: Choice, wants: Wants, now: float) -> Attempt:
        """Take a place at the chosen backend."""
        self.count += 1
        self._tried.append(choice.pair.backend)
        ticket = self._plane.router.sent(choice, wants, now)
        return Attempt(choice.pair, ticket, now, suspect=self.digest is not None)
