"""Prometheus metrics that every program has. One registry per application, so that tests and apps never share state."""

import time
from collections.abc import Awaitable, Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from starlette.responses import Response

# The `_created` series double the page and no dashboard of ours reads them.
disable_created_metrics()  # type: ignore[no-untyped-call]  # prometheus_client leaves it untyped

SECONDS = "http_request_seconds"
SECONDS_BUCKETS = (0.001, 0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
SECONDS_HELP = "Seconds from the request to the start of its answer."
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class HttpMetrics:
    """Counts requests and their durations (seconds to the first byte of the answer), by route template."""

    def __init__(self, service: str) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.requests = Counter(
            "http_requests_total", "Requests answered.", ["method", "route", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            SECONDS,
            SECONDS_HELP,
            ["route"],
            registry=self.registry,
            buckets=SECONDS_BUCKETS,
        )
        self.in_flight = Gauge("http_requests_in_flight", "Requests being answered now.", registry=self.registry)
        # Awaited before each exposition, for what must be asked first.
        self.before_scrape: list[Callable[[], Awaitable[None]]] = []
        started = Gauge("service_start_time_seconds", "Unix time of the start.", ["service"], registry=self.registry)
        started.labels(service).set(time.time())

    def exposition(self) -> bytes:
        """The text that a Prometheus server scrapes."""
        return generate_latest(self.registry)


def metrics_route(metrics: HttpMetrics) -> Callable[[], Awaitable[Response]]:
    """Return the handler of `GET /metrics`."""

    async def answer() -> Response:
        for refresh in metrics.before_scrape:
            await refresh()
        return Response(metrics.exposition(), headers={"content-type": CONTENT_TYPE})

    return answer
