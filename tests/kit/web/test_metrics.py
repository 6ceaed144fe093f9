"""The metrics page."""

from fastapi.testclient import TestClient
from prometheus_client import Gauge
from prometheus_client.parser import text_string_to_metric_families

from kit.web.metrics import HttpMetrics
from tests.kit.served import bare_app


def test_page_parses_with_the_official_parser() -> None:
    """It has the families that the dashboards use."""
    client = TestClient(bare_app(), base_url="http://localhost")
    client.get("/nowhere")
    response = client.get("/metrics")
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    families = {family.name: family for family in text_string_to_metric_families(response.text)}
    assert {"http_requests", "http_request_seconds", "http_requests_in_flight", "service_start_time_seconds"} <= set(
        families
    )
    assert {"process_cpu_seconds", "process_resident_memory_bytes"} <= set(families)
    assert not [name for name in families if name.endswith("_created")]


def test_start_time_has_the_service_label() -> None:
    """Dashboards join on it."""
    metrics = HttpMetrics("embedding")
    assert metrics.registry.get_sample_value("service_start_time_seconds", {"service": "embedding"})


def test_applications_have_separate_registries() -> None:
    first, second = HttpMetrics("a"), HttpMetrics("b")
    first.requests.labels("GET", "/x", "200").inc()
    labels = {"method": "GET", "route": "/x", "status": "200"}
    assert first.registry.get_sample_value("http_requests_total", labels) == 1
    assert second.registry.get_sample_value("http_requests_total", labels) is None


def test_page_needs_no_key() -> None:
    """Prometheus scrapes without one; keys guard /v1."""
    assert TestClient(bare_app(keys=["k"]), base_url="http://localhost").get("/metrics").status_code == 200


async def test_before_scrape_callbacks_run_first() -> None:
    metrics = HttpMetrics("gpu")
    gauge = Gauge("asked", "A reading.", registry=metrics.registry)

    async def ask() -> None:
        gauge.set(7)

    metrics.before_scrape.append(ask)
    response = TestClient(bare_app(metrics=metrics), base_url="http://localhost").get("/metrics")
    assert "asked 7.0" in response.text
