"""What the gateway counts beyond the frame's metrics: per backend, kept as plain numbers and read when scraped."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client import Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gateway.backends import USABLE, Backends, State
from gateway.exposition import added_up
from kit.metrics import HttpMetrics

STATES: tuple[State, ...] = ("healthy", "loading", "busy", "stuck", "unhealthy", "draining")


class GatewayMetrics(HttpMetrics):
    """The frame's metrics with relayed requests among them, counted cheaply and added up when they are read."""

    def __init__(self) -> None:
        super().__init__("gateway")
        # Requests being relayed now.
        self.relaying = 0
        # The same of the other workers on our port, as text.
        self.others: Callable[[], Iterable[str]] = tuple
        self._published = 0
        self._counts: Counter[tuple[str, int]] = Counter()
        self._observe: dict[str, Callable[[float], None]] = {}
        self._ttft = Histogram(
            "gateway_time_to_first_token_seconds",
            "Seconds from a request's arrival to the first byte of its streamed answer.",
            ["model"],
            registry=self.registry,
            buckets=(0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
        )
        self._observe_ttft: dict[str, Callable[[float], None]] = {}

    def count(self, route: str, status: int, first_byte_s: float, streamed: str | None) -> None:
        """One relayed request has ended. `first_byte_s` is the time to the first byte of its answer, in seconds.

        `streamed` is the model of an answer that came as a stream, token by token.
        """
        self._counts[route, status] += 1
        if streamed is not None and status < 300:
            first_token = self._observe_ttft.get(streamed)
            if first_token is None:
                first_token = self._observe_ttft[streamed] = self._ttft.labels(streamed).observe
            first_token(first_byte_s)
        observe = self._observe.get(route)
        if observe is None:
            observe = self._observe[route] = self.seconds.labels(route).observe
        observe(first_byte_s)

    def exposition(self) -> bytes:
        """The text that a Prometheus server scrapes: of all workers on our port."""
        others = self.others()
        return added_up(self.own(), others).encode() if others else self.own().encode()

    def own(self) -> str:
        """This worker's part of it."""
        counts, self._counts = self._counts, Counter()
        for (route, status), count in counts.items():
            self.requests.labels("POST", route, str(status)).inc(count)
        self.in_flight.inc(self.relaying - self._published)
        self._published = self.relaying
        return super().exposition().decode()


class BackendCollector(Collector):
    """The backends as Prometheus sees them, and what was sent to other models than it named."""

    def __init__(self, backends: Backends, fallen_back: Mapping[tuple[str, str], int]) -> None:
        """`fallen_back` counts requests by the model that they named and the fallback that they were sent to."""
        self._backends = backends
        self._fallen_back = fallen_back

    def collect(self) -> Iterator[Metric]:
        """Read the backends' numbers as they are now."""
        up = GaugeMetricFamily("gateway_backend_up", "Whether the backend may be sent requests.", labels=["backend"])
        state = GaugeMetricFamily("gateway_backend_state", "1 for the present state.", labels=["backend", "state"])
        in_flight = GaugeMetricFamily("gateway_backend_in_flight", "Requests at the backend now.", labels=["backend"])
        sockets = GaugeMetricFamily(
            "gateway_backend_connections", "Open connections, by use.", labels=["backend", "use"]
        )
        requests = CounterMetricFamily("gateway_backend_requests", "Requests sent, retries too.", labels=["backend"])
        outcomes = CounterMetricFamily(
            "gateway_backend_outcomes", "How requests to the backend ended.", labels=["backend", "outcome"]
        )
        ttft = GaugeMetricFamily("gateway_backend_ttft_seconds", "The last time to the first byte.", labels=["backend"])
        poll = GaugeMetricFamily(
            "gateway_backend_poll_seconds", "Duration of the last health poll.", labels=["backend"]
        )
        for backend in self._backends:
            name = backend.name
            up.add_metric([name], float(backend.state in USABLE))
            for one in STATES:
                state.add_metric([name, one], float(backend.state == one))
            in_flight.add_metric([name], backend.in_flight)
            sockets.add_metric([name, "idle"], backend.pool.idle_count)
            sockets.add_metric([name, "active"], backend.pool.open_count - backend.pool.idle_count)
            requests.add_metric([name], backend.requests)
            for outcome, count in sorted(backend.outcomes.items()):
                outcomes.add_metric([name, outcome], count)
            if backend.ttft.last is not None:
                ttft.add_metric([name], backend.ttft.last)
            if backend.response_time_ms is not None:
                poll.add_metric([name], backend.response_time_ms / 1000)
        fallbacks = CounterMetricFamily(
            "gateway_fallbacks", "Requests sent to a fallback of the model that they named.", labels=["model", "served"]
        )
        for (model, served), count in sorted(self._fallen_back.items()):
            fallbacks.add_metric([model, served], count)
        yield from (fallbacks, up, state, in_flight, sockets, requests, outcomes, ttft, poll)
