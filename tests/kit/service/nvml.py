"""NVML as a driver would answer it, put in the place of pynvml's functions: the far side of the library."""

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

MIB = 1024 * 1024


def failing(code: int) -> Callable[..., Any]:
    """A function that fails with NVML's `code`."""

    def fail(*_: object) -> Any:
        raise pynvml.NVMLError(code)

    return fail


@dataclass
class Gpu:
    """A handle, unhashable as the real ones are: a GPU or a MIG slice.

    `broken` maps the end of a function's name to the NVML error code it fails with. `ids` are a slice's instances.
    """

    uuid: str
    name: str = "NVIDIA H200"
    total: int = 143_771 * MIB
    used: int = 1_000 * MIB
    utilization: int = 37
    temperature: int = 41
    milliwatts: int = 121_437
    slices: list["Gpu | None"] = field(default_factory=list)
    ids: tuple[int, int] = (0, 0)
    broken: dict[str, int] = field(default_factory=dict)


class Driver:
    """A machine's NVML with its GPUs. `open` counts nvmlInit without nvmlShutdown."""

    def __init__(self, gpus: list[Gpu]) -> None:
        self.gpus = gpus
        self.open = 0

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Answer in the place of the real library."""
        for name in dir(self):
            if name.startswith("nvml"):
                monkeypatch.setattr(pynvml, name, self.guarded(name))

    def guarded(self, name: str) -> Callable[..., Any]:
        """The function `name`, which fails for what is broken. Raises AttributeError when there is none."""
        answer = getattr(self, name)

        def call(*args: Any) -> Any:
            for arg in args:
                if isinstance(arg, Gpu) and name.removeprefix("nvmlDeviceGet") in arg.broken:
                    raise pynvml.NVMLError(arg.broken[name.removeprefix("nvmlDeviceGet")])
            return answer(*args)

        return call

    def nvmlInit(self) -> None:  # noqa: N802  # NVML's own name, like those below
        self.open += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Gpu:  # noqa: N802
        gpu = self.gpus[index]
        if "HandleByIndex" in gpu.broken:
            raise pynvml.NVMLError(gpu.broken["HandleByIndex"])
        return gpu

    def nvmlDeviceGetUUID(self, gpu: Gpu) -> str:  # noqa: N802
        return gpu.uuid

    def nvmlDeviceGetName(self, gpu: Gpu) -> str:  # noqa: N802
        return gpu.name

    def nvmlDeviceGetMemoryInfo(self, gpu: Gpu) -> Any:  # noqa: N802
        return SimpleNamespace(total=gpu.total, used=gpu.used, free=gpu.total - gpu.used)

    def nvmlDeviceGetUtilizationRates(self, gpu: Gpu) -> Any:  # noqa: N802
        return SimpleNamespace(gpu=gpu.utilization, memory=1)

    def nvmlDeviceGetTemperature(self, gpu: Gpu, sensor: int) -> int:  # noqa: N802
        assert sensor == pynvml.NVML_TEMPERATURE_GPU
        return gpu.temperature

    def nvmlDeviceGetPowerUsage(self, gpu: Gpu) -> int:  # noqa: N802
        return gpu.milliwatts

    def nvmlDeviceGetMaxMigDeviceCount(self, gpu: Gpu) -> int:  # noqa: N802
        return len(gpu.slices)

    def nvmlDeviceGetMigDeviceHandleByIndex(self, gpu: Gpu, index: int) -> Gpu:  # noqa: N802
        found = gpu.slices[index]
        if found is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return found

    def nvmlDeviceGetGpuInstanceId(self, gpu: Gpu) -> int:  # noqa: N802
        return gpu.ids[0]

    def nvmlDeviceGetComputeInstanceId(self, gpu: Gpu) -> int:  # noqa: N802
        return gpu.ids[1]
