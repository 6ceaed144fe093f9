"""Where a request has been and where it may still go."""

from gateway.attempt import Attempt
from gateway.backends import Backend
from gateway.plane import Plane
from gateway.routing import Choice, Wants
from kit.errors import ApiError


class Tries:
    """The attempts of one request, the present one last."""

    __slots__ = ("_plane", "_tried", "count")

    def __init__(self, plane: Plane) -> None:
        self._plane = plane
        self._tried: list[Backend] = []
        self.count = 0

    def choose(self, wants: Wants, now: float) -> Choice | None:
        """The best backend not tried yet, or None when there is none or enough were tried.

        Raises what routing raises. `now` is a monotonic time.
        """
        if self.count >= self._plane.limits.max_attempts:
            return None
        return self._plane.router.choose(wants, now, tried=self._tried)

    def another(self, wants: Wants, now: float) -> bool:
        """Whether there is one."""
        try:
            return self.choose(wants, now) is not None
        except ApiError:
            return False

    def begin(self, choice: Choice, wants: Wants, now: float) -> Attempt:
        """Take a place at the chosen backend."""
        self.count += 1
        self._tried.append(choice.pair.backend)
        return Attempt(choice.pair, self._plane.router.sent(choice, wants, now), now)
