"""Prometheus metrics of every program, in one registry per application."""

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

# The `_created` series double the page; no dashboard of ours uses them.
disable_created_metrics()  # type: ignore[no-untyped-call]  # prometheus_client leaves it untyped

SECONDS = "http_request_seconds"
SECONDS_BUCKETS = (0.001, 0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
SECONDS_HELP = "Seconds from the request to the start of its response."
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class HttpMetrics:
    """Request counts and durations (seconds to the response's first byte), by route template."""

    def __init__(self, service: str) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.requests = Counter(
            "http_requests_total", "Requests handled.", ["method", "route", "status"], registry=self.registry
        )
        self.seconds = Histogram(SECONDS, SECONDS_HELP, ["route"], registry=self.registry, buckets=SECONDS_BUCKETS)
        self.in_flight = Gauge("http_requests_in_flight", "Requests in flight.", registry=self.registry)
        # Awaited before each exposition, to refresh gauges.
        self.before_scrape: list[Callable[[], Awaitable[None]]] = []
        started = Gauge("service_start_time_seconds", "Unix time of the start.", ["service"], registry=self.registry)
        started.labels(service).set(time.time())

    def exposition(self) -> bytes:
        """Return the metrics in Prometheus's text format."""
        return generate_latest(self.registry)

    async def page(self) -> Response:
        """Handle `GET /metrics`."""
        for refresh in self.before_scrape:
            await refresh()
        return Response(self.exposition(), headers={"content-type": CONTENT_TYPE})
