"""The GPUs that a service may see, as Prometheus sees them: read when the page is asked for, never in between."""

from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

MIB = 1024 * 1024
# A scrape must not wait for a GPU that hangs: Prometheus gives up after ten seconds.
READ_WITHIN_S = 1.0

# The reading of `kit.service.gpu`, the metric, what one unit of the reading is in the metric's, and what it tells.
GAUGES = (
    ("memory_total_mb", "gpu_memory_total_bytes", MIB, "Memory of the GPU."),
    ("memory_used_mb", "gpu_memory_used_bytes", MIB, "Memory in use, by whatever process."),
    ("utilization_percent", "gpu_utilization_ratio", 0.01, "Share of the last moment in which the GPU worked."),
    ("temperature_c", "gpu_temperature_celsius", 1, "Temperature of the GPU."),
    ("power_watts", "gpu_power_watts", 1, "Power that the GPU draws."),
)
LABELS = ("gpu", "uuid", "name")


class GpuGauges(Collector):
    """What `read` told last. Call `refresh` before each exposition."""

    def __init__(self, registry: CollectorRegistry, read: Callable[[float], Awaitable[dict[str, Any]]]) -> None:
        """`read` is `GpuReader.read`: it takes the seconds it may last and never raises."""
        self._read = read
        self._stats: dict[str, Any] = {"gpus": []}
        registry.register(self)

    async def refresh(self) -> None:
        """Read the GPUs."""
        self._stats = await self._read(READ_WITHIN_S)

    def collect(self) -> Iterator[Metric]:
        """One family per reading; a GPU that does not tell a value has no sample of it."""
        for reading, name, unit, tells in GAUGES:
            family = GaugeMetricFamily(name, tells, labels=LABELS)
            for gpu in self._stats["gpus"]:
                if gpu[reading] is not None:
                    labels = [str(gpu["index"]), str(gpu["uuid"] or ""), str(gpu["name"] or "")]
                    family.add_metric(labels, gpu[reading] * unit)
            yield family
