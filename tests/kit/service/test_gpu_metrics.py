"""GPU gauges on the metrics page."""

from typing import Any

from prometheus_client import CollectorRegistry

from kit.service.gpu_metrics import GpuGauges

GPU = {
    "index": 1, "uuid": "GPU-1", "name": "H100", "memory_total_mb": 1000, "memory_used_mb": 250, "memory_free_mb": 750,
    "utilization_percent": 50, "temperature_c": 40, "power_watts": 100.5,
}  # fmt: skip
LABELS = {"gpu": "1", "uuid": "GPU-1", "name": "H100"}


async def gauges_of(*gpus: dict[str, Any]) -> CollectorRegistry:
    """A registry with the gauges after one reading."""

    async def read(_within_s: float) -> dict[str, Any]:
        return {"available": bool(gpus), "gpus": list(gpus)}

    registry = CollectorRegistry()
    await GpuGauges(registry, read).refresh()
    return registry


async def test_readings_in_base_units() -> None:
    """Bytes, ratios, degrees and watts, as in Prometheus's conventions."""
    registry = await gauges_of(GPU)
    assert registry.get_sample_value("gpu_memory_total_bytes", LABELS) == 1000 * 2**20
    assert registry.get_sample_value("gpu_memory_used_bytes", LABELS) == 250 * 2**20
    assert registry.get_sample_value("gpu_utilization_ratio", LABELS) == 0.5
    assert registry.get_sample_value("gpu_temperature_celsius", LABELS) == 40
    assert registry.get_sample_value("gpu_power_watts", LABELS) == 100.5


async def test_missing_reading_has_no_sample() -> None:
    registry = await gauges_of(GPU | {"temperature_c": None, "uuid": None})
    assert registry.get_sample_value("gpu_temperature_celsius", LABELS | {"uuid": ""}) is None
    assert registry.get_sample_value("gpu_power_watts", LABELS | {"uuid": ""}) == 100.5


async def test_families_without_gpu_are_empty() -> None:
    registry = await gauges_of()
    assert {family.name for family in registry.collect()} >= {"gpu_memory_total_bytes", "gpu_power_watts"}
    assert [sample for family in registry.collect() for sample in family.samples] == []
