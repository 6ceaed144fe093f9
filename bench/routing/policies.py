"""Routing policies: the gateway's own router and the ones to compare it with."""

import hashlib
import random
import time
from collections.abc import Sequence
from typing import Protocol

from bench.routing.servers import Server
from bench.routing.workload import Request
from gateway.backends.backend import Backend, Clock
from gateway.backends.load import Ticket
from gateway.backends.offers import offer_of_entry
from gateway.discovery.target import make_target
from gateway.endpoints import BY_PATH
from gateway.routing import Router, RoutingRequest
from gateway.routing.router import Affinity
from gateway.upstream.pool import Pool
from kit.config.catalogue import Catalogue, Entry

CHAT = BY_PATH[b"/v1/chat/completions"]
MODEL = "model"


class Policy(Protocol):
    """A policy, notified of each request's events when a gateway would see them."""

    def choose(self, request: Request, now: float) -> int:
        """Return the index of the server; the request is sent at once."""

    def first_token(self, request: Request, now: float) -> None:
        """The first byte has arrived."""

    def ended(self, request: Request, server: int, now: float) -> None:
        """The last byte has arrived."""


class _Plain:
    def __init__(self, servers: Sequence[Server], seed: int) -> None:
        self.servers = servers
        self.random = random.Random(seed)
        self.in_flight = [0] * len(servers)

    def choose(self, request: Request, now: float) -> int:
        """Choose a server and count the request."""
        number = self.pick(request, now)
        self.in_flight[number] += 1
        return number

    def pick(self, request: Request, now: float) -> int:
        """Return the index of the server."""
        raise NotImplementedError

    def first_token(self, request: Request, now: float) -> None:
        """Learn nothing."""

    def ended(self, request: Request, server: int, now: float) -> None:
        """Count the request as ended."""
        self.in_flight[server] -= 1


class RoundRobin(_Plain):
    """Servers in turn."""

    _next = -1

    def pick(self, request: Request, now: float) -> int:
        """Return the next server."""
        self._next = (self._next + 1) % len(self.servers)
        return self._next


class RandomChoice(_Plain):
    """A random server."""

    def pick(self, request: Request, now: float) -> int:
        """Return a random server."""
        return self.random.randrange(len(self.servers))


class LeastRequest(_Plain):
    """The server with the fewest requests in flight; a random one of several."""

    def pick(self, request: Request, now: float) -> int:
        """Return the least loaded server."""
        least = min(self.in_flight)
        return self.random.choice([number for number, count in enumerate(self.in_flight) if count == least])


class PrefixOnly(_Plain):
    """The same server for the same prefix, whatever its load."""

    def pick(self, request: Request, now: float) -> int:
        """Return the server by the hash of the first block."""
        digest = hashlib.sha256(repr(request.blocks[0]).encode()).digest()
        return int.from_bytes(digest[:8]) % len(self.servers)


class Oracle(_Plain):
    """The server with the least actual time to first token, from its true speed and queue."""

    def pick(self, request: Request, now: float) -> int:
        """Return the server that will respond first."""
        times = [server.plan(request, now).first_token for server in self.servers]
        return times.index(min(times))


class Ours:
    """The gateway's router, with backends that are never connected to."""

    def __init__(self, servers: Sequence[Server], seed: int, affinity: Affinity = "prefix") -> None:
        catalogue = Catalogue([Entry.model_validate({"name": MODEL, "kind": "llm", "hf_repo": f"org/{MODEL}"})])
        entry = catalogue.find(MODEL)
        assert entry is not None
        self._backends: list[Backend] = []
        for server in servers:
            target = make_target(server.name, "http://127.0.0.1:1")
            backend = Backend(target, Pool(target), Clock(time.perf_counter, time.time))
            backend.set_offers((offer_of_entry(entry),))
            backend.observe("healthy")
            self._backends.append(backend)
        self._router = Router(self._backends, catalogue, affinity=affinity, draw=random.Random(seed).random)
        self._tickets: dict[int, Ticket] = {}

    def choose(self, request: Request, now: float) -> int:
        """Route the request and record that it was sent."""
        prompt = request.prompt
        routing_request = RoutingRequest(CHAT, MODEL, stream=True, size=len(prompt), prompt=(prompt,))
        # The gateway expects a clock that does not start at 0.
        choice = self._router.choose(routing_request, now + 1000.0)
        assert choice is not None
        self._tickets[id(request)] = self._router.admit(choice, routing_request, now + 1000.0)
        return self._backends.index(choice.candidate.backend)

    def first_token(self, request: Request, now: float) -> None:
        """Record the first byte."""
        self._tickets[id(request)].first_byte(now + 1000.0, ok=True)

    def ended(self, request: Request, server: int, now: float) -> None:
        """Record the end."""
        self._tickets.pop(id(request)).end("http_200")
