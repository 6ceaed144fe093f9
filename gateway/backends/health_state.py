"""How one backend is, put together from all that is known: polls, what became of requests, progress, an operator. Pure.

    draining    an operator took it out
    loading     as its polls say; busy, unhealthy too
    stuck       it answers polls and does not work (gateway.progress)
    unhealthy   it answers polls and its requests fail (gateway.breaker)
    healthy     none of these

The first that holds is the state. All times are monotonic, in seconds.
"""

from typing import Literal

from gateway.backends.circuit_breaker import Breaker

State = Literal["healthy", "loading", "busy", "stuck", "unhealthy", "draining"]

# The states in which a backend may be sent a request; `busy` only where nothing better is.
USABLE: frozenset[State] = frozenset({"healthy", "busy"})
# What a backend is taken to be capable of in the moment of its start, as a share of what it is later.
COLD = 0.1
# What a worker's own requests have shown of a backend that answers polls, with the reason.
Verdict = tuple[Literal["stuck", "unhealthy"], str]


class Condition:
    """One backend's. `slow_start_s` and `is_new` are set once it is known how it came."""

    __slots__ = ("_error", "_observed", "_observed_before", "_stuck", "_warm_from", "breaker", "draining",
                 "is_new", "others", "slow_start_s")  # fmt: skip

    def __init__(self) -> None:
        # What polls and connections have shown, with the reason; whether there was any poll before.
        self._observed: State = "unhealthy"
        self._error: str | None = "not asked yet"
        self._observed_before = False
        # What requests have shown; why it is stuck, None where it is not.
        self.breaker = Breaker()
        self._stuck: str | None = None
        # The verdict of another worker on our port. It holds here, too, until that one takes it back.
        self.others: Verdict | None = None
        self.draining = False
        # Since when it takes requests after a start, and for how long it then warms up.
        self._warm_from = float("-inf")
        self.slow_start_s = 0.0
        # Whether it came when others were at work already; of those that came with the gateway, all are equally cold.
        self.is_new = False

    @property
    def state(self) -> State:
        """The state as the contract names it."""
        if self.draining:
            return "draining"
        if self._observed not in USABLE:
            return self._observed
        against = self._against
        return self._observed if against is None else against[0]

    @property
    def reason(self) -> str | None:
        """Why it is not better, None where that is not known or there is nothing to say."""
        if self._observed not in USABLE:
            return self._error
        against = self._against
        return self._error if against is None else against[1]

    @property
    def verdict(self) -> Verdict | None:
        """What our own requests have shown, None where nothing speaks against it."""
        if self._stuck is not None:
            return "stuck", self._stuck
        return ("unhealthy", self.breaker.reason) if self.breaker.reason is not None else None

    @property
    def _against(self) -> Verdict | None:
        """The graver one of our own verdict and that of others."""
        own, others = self.verdict, self.others
        return others if own is None or (others is not None and others[0] == "stuck") else own

    @property
    def answers_polls(self) -> bool:
        """Whether polls found it fit to take requests."""
        return self._observed in USABLE

    @property
    def is_stuck(self) -> bool:
        """Whether it does not work on what it has."""
        return self._stuck is not None

    @property
    def is_doubtful(self) -> bool:
        """Whether only failed requests speak against it: where there is nobody else, it is better than none."""
        return self.answers_polls and self.state == "unhealthy"

    def wants_canary(self, now: float) -> bool:
        """Whether it would take requests, were it not for what became of the last ones."""
        return self._observed == "healthy" and (self.is_stuck or self.breaker.is_due(now))

    def observe(self, state: State, error: str | None, now: float) -> None:
        """Take in what a poll or a connection has shown."""
        if state in USABLE and not self.answers_polls and (self._observed_before or self.is_new):
            self._warm_from = now
            # What failed before may have been another process: a canary is to tell, at once.
            self.breaker.hasten(now)
        self._observed, self._error = state, error
        self._observed_before = True

    def be_stuck(self, reason: str | None) -> None:
        """It does not work, because of `reason`; None: it works again."""
        self._stuck = reason

    def canary_answered(self, error: str | None, now: float) -> None:
        """A canary has shown that it works, or `error`."""
        if error is None:
            self.breaker.close(now)
            self._stuck = None
            self._warm_from = now
        elif self.is_stuck:
            self._stuck = error
        else:
            self.breaker.canary_failed(error, now)

    def warmth(self, now: float) -> float:
        """How much of its capacity it has so shortly after its start, of (0, 1].

        A fresh engine compiles and has nothing cached: it gets its share of the requests little by little.
        """
        age, slow = now - self._warm_from, self.slow_start_s
        return 1.0 if age >= slow or slow == 0.0 else max(age / slow, COLD)

    def stand_in(self, before: "Condition") -> None:
        """Be as another backend of this name was, until this one has been asked itself."""
        self._observed, self._error, self._observed_before = before._observed, before._error, before._observed_before
        self.draining = before.draining

    def take_over(self, twin: "Condition") -> None:
        """Be as the same server is under another name. What its requests show holds for both from now on."""
        self.stand_in(twin)
        self.breaker, self._stuck, self._warm_from = twin.breaker, twin._stuck, twin._warm_from
