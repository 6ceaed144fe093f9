"""Where a request has been and where it may still go."""

from gateway.attempt import Attempt
from gateway.backends import Backend
from gateway.plane import Plane
from gateway.routing import Choice, Wants
from kit.errors import ApiError


class Tries:
    """The attempts of one request, the present one last."""

    __slots__ = ("_limit", "_plane", "_tokens", "_tried", "count")

    def __init__(self, plane: Plane) -> None:
        self._plane = plane
        self._tried: list[Backend] = []
        self._limit = plane.limits.max_attempts
        # How much a stream had said when it was last gone on with, in tokens.
        self._tokens = 0
        self.count = 0

    def choose(self, wants: Wants, now: float) -> Choice | None:
        """The best backend not tried yet, or None when there is none or enough were tried.

        Raises what routing raises. `now` is a monotonic time.
        """
        if self.count >= self._limit:
            return None
        return self._plane.router.choose(wants, now, tried=self._tried)

    def another(self, wants: Wants, now: float) -> bool:
        """Whether there is one."""
        try:
            return self.choose(wants, now) is not None
        except ApiError:
            return False

    def go_on(self, wants: Wants, tokens: int, *, prefills: bool) -> None:
        """A stream that has said `tokens` goes on elsewhere: the count begins anew if it came further since last time.

        With `prefills`, only backends that can continue a message count. Raises what routing raises.
        """
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
        return Attempt(choice.pair, self._plane.router.sent(choice, wants, now), now)
