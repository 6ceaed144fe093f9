"""Prometheus' configuration, its alerts and the dashboard: well formed, with existing metrics and services."""

import asyncio
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from gateway.backends.backend_table import Backends
from gateway.discovery.target import parse_services
from gateway.telemetry.metrics import BackendCollector, GatewayMetrics
from kit.service.gpu_metrics import GpuGauges
from kit.web.metrics import HttpMetrics
from services.embedding.batching.metrics import BatchMetrics
from services.transcription.metrics import SpeechMetrics
from tests.deploy.compose_files import CLUSTER, ONLINE, load
from tests.gateway.plain import CLOCK

ROOT = Path(__file__).resolve().parents[2]
MONITORING = ROOT / "deploy" / "monitoring"
PROMETHEUS = MONITORING / "prometheus"
DASHBOARD = json.loads((MONITORING / "grafana" / "dashboards" / "cluster.json").read_text())
RULES = yaml.safe_load((PROMETHEUS / "rules.yml").read_text())["groups"]
SCRAPED = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())["scrape_configs"]

# What is not ours to export: Prometheus' own, the store's (docs of MinIO's metrics v2), the engine's (vLLM 0.32).
FOREIGN = {
    "up",
    "ALERTS",
    "minio_cluster_capacity_usable_free_bytes",
    "minio_cluster_capacity_usable_total_bytes",
    "vllm:num_requests_waiting",
}
WORDS = re.compile(r"(?<![\w:.])[a-zA-Z_:][\w:]*(?![\w:]*\s*\()")
NOT_METRICS = {"by", "or", "and", "unless", "on", "sum", "max"}

PROMTOOL = os.environ.get("PROMTOOL") or shutil.which("promtool")
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool (Debian's package prometheus) is not here")


def expressions() -> Iterator[str]:
    """Every query of the dashboard and the rules."""
    for panel in DASHBOARD["panels"]:
        yield from (target["expr"] for target in panel.get("targets", ()))
    for group in RULES:
        yield from (rule["expr"] for rule in group["rules"])


def metrics_of(expression: str) -> set[str]:
    """The metrics that a query names: its words without labels, durations and functions."""
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]|\b(?:by|on|ignoring|without)\s*\([^)]*\)", " ", expression)
    return set(WORDS.findall(bare)) - NOT_METRICS


def exported() -> set[str]:
    """The names of all samples that our programs export once they have data."""
    gateway = GatewayMetrics()
    backends = Backends({}, CLOCK)
    for target in parse_services("llm-primary=http://127.0.0.1:1"):
        backends.upsert(target)
    backend = backends.get("llm-primary")
    assert backend is not None
    backend.traffic.outcomes["http_200"] += 1
    backend.load.ttft_s = 0.1
    backend.last_probe.response_time_ms = 1.0
    gateway.registry.register(BackendCollector(backends, {("qwen", "tinyllama"): 1}))
    gateway.count("/v1/chat/completions", 200, 0.1, "qwen")
    service = HttpMetrics("service")
    BatchMetrics(service.registry).observe_batch(texts=1, width=1, seconds=1.0)
    SpeechMetrics(service.registry).observe_recording(audio_s=1.0, took_s=1.0)

    async def read(_within_s: float) -> dict[str, Any]:
        numbers = dict.fromkeys(
            ("memory_total_mb", "memory_used_mb", "utilization_percent", "temperature_c", "power_watts"), 1
        )
        return {"gpus": [{"index": 0, "uuid": "GPU-1", "name": "H100", **numbers}]}

    asyncio.run(GpuGauges(service.registry, read).refresh())
    pages = gateway.exposition().decode() + service.exposition().decode()
    return {sample.name for family in text_string_to_metric_families(pages) for sample in family.samples}


def test_metric_names_are_found_in_queries() -> None:
    """The test's own parser."""
    query = 'histogram_quantile(0.99, sum by (le, model) (rate(a_b_bucket{x="y"}[5m]))) > 10 or vllm:c * 2 unless d'
    assert metrics_of(query) == {"a_b_bucket", "vllm:c", "d"}


def test_every_queried_metric_is_exported() -> None:
    queried = set().union(*(metrics_of(expression) for expression in expressions()))
    assert len(queried) > 15
    assert queried - exported() - FOREIGN == set()
    assert queried >= FOREIGN


def test_scrape_targets_match_the_compose_files() -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.gpu-cluster.yml").read_text())
    routes = dict(route.split(":") for route in compose["services"]["edge"]["environment"]["ROUTES"].split())
    routes = {name: int(port) for name, port in routes.items() if name in compose["services"]}
    scraped = {name: sd["port"] for job in SCRAPED for sd in job["dns_sd_configs"] for name in sd["names"]}
    expected = {
        "gateway",
        "registry",
        "minio",
        "llm-primary",
        "llm-secondary",
        "embedding",
        "multimodal",
        "transcription",
    }
    assert scraped.keys() == expected
    assert {name: port for name, port in scraped.items() if name != "minio"} == {
        name: routes[name] for name in expected - {"minio"}
    }
    assert scraped["minio"] == 9000


@pytest.mark.parametrize("file", [ONLINE, CLUSTER])
def test_prometheus_reads_the_gateway_without_a_key(file: str) -> None:
    """The gateway trusts its name, which it can resolve: both are on one network."""
    services = load(file)["services"]
    trusted = services["gateway"]["environment"]["STATUS_TRUSTED_NETWORKS"]
    assert trusted == "${STATUS_TRUSTED_NETWORKS:-prometheus}"
    assert set(services["prometheus"]["networks"]) & set(services["gateway"]["networks"])


def test_services_that_are_switched_off_raise_no_alert() -> None:
    """Targets are found by DNS, so they have none."""
    assert not [job["job_name"] for job in SCRAPED if "static_configs" in job]
    assert all(sd["type"] == "A" for job in SCRAPED for sd in job["dns_sd_configs"])


def test_alerts_have_severity_summary_and_next_step() -> None:
    for rule in (rule for group in RULES for rule in group["rules"]):
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"].keys() == {"summary", "look"}


def test_dashboard_panels_are_complete() -> None:
    """Title, own place, provisioned data source."""
    source = yaml.safe_load((MONITORING / "grafana/provisioning/datasources/prometheus.yml").read_text())
    uid = source["datasources"][0]["uid"]
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
        assert panel["title"]
        if panel["type"] != "row":
            assert panel["targets"]
            assert {panel["datasource"]["uid"], *(target["datasource"]["uid"] for target in panel["targets"])} == {uid}


def test_dashboard_has_its_rows() -> None:
    rows = [panel["title"] for panel in DASHBOARD["panels"] if panel["type"] == "row"]
    assert rows == ["Is it up?", "How fast?", "How loaded?", "Errors", "GPUs", "Machine"]


@needs_promtool
def test_promtool_accepts_the_configuration() -> None:
    checked = subprocess.run(
        [str(PROMTOOL), "check", "config", str(PROMETHEUS / "prometheus.yml")], capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


@needs_promtool
def test_promtool_accepts_every_query(tmp_path: Path) -> None:
    rules = [
        {"record": f"panel:{number}", "expr": expression.replace("$__rate_interval", "1m")}
        for number, expression in enumerate(expressions())
    ]
    (tmp_path / "panels.yml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    command = [str(PROMTOOL), "check", "rules", "--lint=none", str(tmp_path / "panels.yml")]
    checked = subprocess.run(command, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr


@needs_promtool
def test_alerts_fire(tmp_path: Path) -> None:
    """On their own series only."""
    shutil.copy(PROMETHEUS / "rules.yml", tmp_path)
    tests = (Path(__file__).parent / "alerts.yml").read_text()
    (tmp_path / "alerts.yml").write_text(tests)
    command = [str(PROMTOOL), "test", "rules", "alerts.yml"]
    tested = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert tested.returncode == 0, tested.stdout + tested.stderr
    alerts = {rule["alert"] for group in RULES for rule in group["rules"]}
    assert alerts == set(re.findall(r"alertname: (\w+)", tests))
