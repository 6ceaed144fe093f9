"""Where a request may still go after an attempt has failed. Pure."""

from gateway.backends.backend import Backend
from gateway.routing import Choice, Router, RoutingRequest
from kit.errors import ApiError


class Tries:
    """The backends that a request has been at, the present one last."""

    __slots__ = ("_count", "_limit", "_model", "_most", "_prefills", "_router", "_tokens", "_tried")

    def __init__(self, router: Router, most: int) -> None:
        """`most` is how many attempts there may be."""
        self._router = router
        self._tried: list[Backend] = []
        self._count = 0
        self._most = self._limit = most
        # The model that has begun to answer, and how much it had said when it was last gone on with, in tokens.
        self._model: str | None = None
        self._tokens = 0
        # Whether only backends that can continue a message will do.
        self._prefills = False

    def note(self, backend: Backend, count: int) -> None:
        """The present attempt, number `count`, is at this backend."""
        if count != self._count:
            self._count = count
            self._tried.append(backend)

    def choose(self, request: RoutingRequest, now: float, *, last_resort: bool) -> Choice | None:
        """The best backend not tried yet, or None when there is none or enough were tried.

        `last_resort` says that the request fails where there is none: then a doubtful one is better than that.

        Raises what routing raises. `now` is a monotonic time.
        """
        if self._count >= self._limit:
            return None
        choice = self._router.choose(request, now, tried=self._tried, last_resort=last_resort)
        if choice is not None and self._model not in (None, choice.candidate.offer.name):
            # A fallback goes on with no other model's answer.
            return None
        if choice is not None and self._prefills and not choice.candidate.backend.can_prefill:
            return None
        return choice

    def another(self, request: RoutingRequest, now: float, *, last_resort: bool = False) -> bool:
        """Whether there is one."""
        try:
            return self.choose(request, now, last_resort=last_resort) is not None
        except ApiError:
            return False

    def can_go_on(self, request: RoutingRequest, *, prefills: bool) -> bool:
        """Whether a stream could go on at a backend other than the present one."""
        try:
            pairs = self._router.ask(request)
        except ApiError:
            return False
        return any(
            candidate.backend is not self._tried[-1] and (candidate.backend.can_prefill or not prefills)
            for candidate in pairs
        )

    def go_on(self, request: RoutingRequest, tokens: int, *, prefills: bool) -> None:
        """A stream that has said `tokens` goes on elsewhere: the count begins anew if it came further since last time.

        With `prefills`, only backends that can continue a message count. Raises what routing raises.
        """
        self._model = request.model
        self._prefills = prefills
        if tokens > self._tokens:
            self._tokens = tokens
            self._limit = self._count + self._most
            del self._tried[:-1]
        if prefills:
            self._tried += [
                candidate.backend for candidate in self._router.ask(request) if not candidate.backend.can_prefill
            ]
