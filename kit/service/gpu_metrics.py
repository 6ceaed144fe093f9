"""Prometheus gauges of the visible GPUs, read once per scrape."""

from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

MIB = 1024 * 1024
# A scrape must not wait for a GPU that hangs: Prometheus times out after ten seconds.
READ_TIMEOUT_S = 1.0

# Key of `kit.service.gpu`'s result, metric name, factor to the metric's unit, help text.
GAUGES = (
    ("memory_total_mb", "gpu_memory_total_bytes", MIB, "Memory of the GPU."),
    ("memory_used_mb", "gpu_memory_used_bytes", MIB, "Memory in use, by all processes."),
    (
        "utilization_percent",
        "gpu_utilization_ratio",
        0.01,
        "Share of the last sample period in which the GPU was busy.",
    ),
    ("temperature_c", "gpu_temperature_celsius", 1, "Temperature of the GPU."),
    ("power_watts", "gpu_power_watts", 1, "Power draw of the GPU."),
)
LABELS = ("gpu", "uuid", "name")


class GpuGauges(Collector):
    """Gauges of the last reading. Call `refresh` before each exposition."""

    def __init__(self, registry: CollectorRegistry, read: Callable[[float], Awaitable[dict[str, Any]]]) -> None:
        """`read` is `GpuReader.read`: its argument is the timeout in seconds; it never raises."""
        self._read = read
        self._stats: dict[str, Any] = {"gpus": []}
        registry.register(self)

    async def refresh(self) -> None:
        """Read the GPUs."""
        self._stats = await self._read(READ_TIMEOUT_S)

    def collect(self) -> Iterator[Metric]:
        """Yield one family per reading; an unsupported value has no sample."""
        for reading, name, unit, text in GAUGES:
            family = GaugeMetricFamily(name, text, labels=LABELS)
            for gpu in self._stats["gpus"]:
                if gpu[reading] is not None:
                    labels = [str(gpu["index"]), str(gpu["uuid"] or ""), str(gpu["name"] or "")]
                    family.add_metric(labels, gpu[reading] * unit)
            yield family
