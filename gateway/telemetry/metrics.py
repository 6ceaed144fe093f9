"""Gateway metrics: plain numbers that are formatted when scraped."""

import math
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import accumulate

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from gateway.backends.backend_table import Backends
from gateway.backends.health_state import USABLE, State
from gateway.telemetry.merge_exposition import merge
from kit.web.metrics import SECONDS, SECONDS_BUCKETS, SECONDS_HELP, HttpMetrics

STATES: tuple[State, ...] = ("healthy", "loading", "busy", "stuck", "unhealthy", "draining")
TTFT_BUCKETS = (0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class GatewayMetrics(HttpMetrics):
    """The common HTTP metrics plus relayed requests, whose counting must cost little."""

    def __init__(self) -> None:
        super().__init__("gateway")
        # Relayed requests in flight.
        self.relaying = 0
        # Returns the expositions of the other workers on our port.
        self.others: Callable[[], Iterable[str]] = tuple
        self._published = 0
        self._counts: Counter[tuple[str, int]] = Counter()
        self._seconds: defaultdict[str, Durations] = defaultdict(lambda: Durations(SECONDS_BUCKETS))
        self._ttft: defaultdict[str, Durations] = defaultdict(lambda: Durations(TTFT_BUCKETS))
        self._relayed = CollectorRegistry()
        self._relayed.register(_DurationsCollector(SECONDS, SECONDS_HELP, "route", SECONDS_BUCKETS, self._seconds))
        self.registry.register(
            _DurationsCollector(
                "gateway_time_to_first_token_seconds",
                "Seconds from a request's arrival to the first byte of its streamed response.",
                "model",
                TTFT_BUCKETS,
                self._ttft,
            )
        )

    def count(self, route: str, status: int, first_byte_s: float, streamed: str | None) -> None:
        """Count a finished request. `first_byte_s` is the time to the first byte of its response, in seconds.

        `streamed` is the model of a successful streamed response.
        """
        self._counts[route, status] += 1
        self._seconds[route].observe(first_byte_s)
        if streamed is not None:
            self._ttft[streamed].observe(first_byte_s)

    def exposition(self) -> bytes:
        """Return the Prometheus exposition of all workers on our port."""
        others = self.others()
        own = self.own_exposition()
        return (merge(own, others) if others else own).encode()

    def own_exposition(self) -> str:
        """Return this worker's exposition."""
        counts, self._counts = self._counts, Counter()
        for (route, status), count in counts.items():
            self.requests.labels("POST", route, str(status)).inc(count)
        self.in_flight.inc(self.relaying - self._published)
        self._published = self.relaying
        return merge(super().exposition().decode(), (generate_latest(self._relayed).decode(),))


class Durations:
    """A histogram of durations in seconds; `observe` is cheaper than prometheus_client's."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        # Counts per bucket, not cumulative; the last bucket has no upper bound.
        self.counts = [0] * (len(bounds) + 1)
        self.total_s = 0.0

    def observe(self, seconds: float) -> None:
        """Count one duration."""
        self.counts[bisect_left(self._bounds, seconds)] += 1
        self.total_s += seconds


class _DurationsCollector(Collector):
    """Collector of durations by one label."""

    def __init__(
        self, name: str, documentation: str, label: str, bounds: tuple[float, ...], series: Mapping[str, Durations]
    ) -> None:
        self._name = name
        self._documentation = documentation
        self._label = label
        self._bounds = [floatToGoString(bound) for bound in (*bounds, math.inf)]  # type: ignore[no-untyped-call]
        self._series = series

    def collect(self) -> Iterator[Metric]:
        """Return the current counts."""
        family = HistogramMetricFamily(self._name, self._documentation, labels=[self._label])
        for value, durations in self._series.items():
            buckets = list(zip(self._bounds, accumulate(durations.counts), strict=True))
            family.add_metric([value], buckets, durations.total_s)
        yield family


class BackendCollector(Collector):
    """Collector of the backends' metrics, and of requests sent to a fallback model."""

    def __init__(self, backends: Backends, fallbacks_used: Mapping[tuple[str, str], int]) -> None:
        """`fallbacks_used` counts requests by requested and served model."""
        self._backends = backends
        self._fallbacks_used = fallbacks_used

    def collect(self) -> Iterator[Metric]:
        """Return the backends' current numbers."""
        up = GaugeMetricFamily("gateway_backend_up", "Whether the backend may get requests.", labels=["backend"])
        state = GaugeMetricFamily("gateway_backend_state", "1 for the current state.", labels=["backend", "state"])
        in_flight = GaugeMetricFamily("gateway_backend_in_flight", "Requests at the backend now.", labels=["backend"])
        sockets = GaugeMetricFamily(
            "gateway_backend_connections", "Open connections, by use.", labels=["backend", "use"]
        )
        requests = CounterMetricFamily("gateway_backend_requests", "Requests sent, retries too.", labels=["backend"])
        outcomes = CounterMetricFamily(
            "gateway_backend_outcomes", "How requests to the backend ended.", labels=["backend", "outcome"]
        )
        queued = GaugeMetricFamily(
            "gateway_backend_queued", "Requests at the backend without a first token.", labels=["backend"]
        )
        ejections = CounterMetricFamily(
            "gateway_backend_ejections",
            "How often the backend was taken out of rotation though it passed health probes.",
            labels=["backend", "reason"],
        )
        ttft = GaugeMetricFamily("gateway_backend_ttft_seconds", "The last time to the first byte.", labels=["backend"])
        poll = GaugeMetricFamily(
            "gateway_backend_poll_seconds", "Duration of the last health probe.", labels=["backend"]
        )
        for backend in self._backends:
            name = backend.name
            up.add_metric([name], float(backend.state in USABLE))
            for one in STATES:
                state.add_metric([name, one], float(backend.state == one))
            in_flight.add_metric([name], backend.traffic.in_flight)
            sockets.add_metric([name, "idle"], backend.pool.idle_count)
            sockets.add_metric([name, "active"], backend.pool.open_count - backend.pool.idle_count)
            requests.add_metric([name], backend.traffic.requests)
            queued.add_metric([name], backend.queued)
            for reason in ("failures", "stuck", "misconfigured"):
                ejections.add_metric([name, reason], backend.health.ejections[reason])
            for outcome, count in sorted(backend.traffic.outcomes.items()):
                outcomes.add_metric([name, outcome], count)
            if backend.load.ttft_s is not None:
                ttft.add_metric([name], backend.load.ttft_s)
            if backend.last_probe.response_time_ms is not None:
                poll.add_metric([name], backend.last_probe.response_time_ms / 1000)
        fallbacks = CounterMetricFamily(
            "gateway_fallbacks", "Requests sent to a fallback of the requested model.", labels=["model", "served"]
        )
        for (model, served), count in sorted(self._fallbacks_used.items()):
            fallbacks.add_metric([model, served], count)
        yield from (fallbacks, up, state, in_flight, queued, sockets, requests, outcomes, ejections, ttft, poll)
