"""GPU statistics through pynvml on a fake driver library in C."""

import pynvml
import pytest

from kit.service.gpu import gpu_stats
from tests.kit.service.nvml import MIB, Driver, Gpu
from tests.kit.service.nvml_library import Library

A = "GPU-aaaa1111-0000-0000-0000-000000000000"
B = "GPU-bbbb2222-0000-0000-0000-000000000000"
SLICE = "MIG-1111aaaa-0000-0000-0000-000000000000"
# What came with R450 for A100s: https://docs.nvidia.com/deploy/nvml-api/change-log.html
MIG_FUNCTIONS = ("nvmlDeviceGetMaxMigDeviceCount", "nvmlDeviceGetMigDeviceHandleByIndex")


@pytest.fixture(autouse=True)
def one_by_its_uuid(monkeypatch: pytest.MonkeyPatch) -> None:
    """The service was given the second of the machine's GPUs."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", B)


def test_one_gpu_of_many_by_its_uuid(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver([Gpu(A), Gpu(B, "NVIDIA H100 80GB HBM3", total=81_559 * MIB, used=559 * MIB)])
    Library(driver).install(monkeypatch)
    assert gpu_stats() == {
        "available": True,
        "gpus": [
            {
                "index": 1,
                "uuid": B,
                "name": "NVIDIA H100 80GB HBM3",
                "memory_total_mb": 81_559,
                "memory_used_mb": 559,
                "memory_free_mb": 81_000,
                "utilization_percent": 37,
                "temperature_c": 41,
                "power_watts": 121.4,
            }
        ],
    }
    assert driver.open == 0


def test_mig_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", f"MIG-{B}/7/0")
    broken = {"UtilizationRates": pynvml.NVML_ERROR_NOT_SUPPORTED}
    one = Gpu(SLICE, "NVIDIA H100 MIG 1g.10gb", total=9_856 * MIB, used=56 * MIB, ids=(7, 0), broken=broken)
    Library(Driver([Gpu(A), Gpu(B, slices=[None, one])])).install(monkeypatch)
    (gpu,) = gpu_stats()["gpus"]
    assert (gpu["index"], gpu["uuid"], gpu["memory_free_mb"], gpu["utilization_percent"]) == (1, SLICE, 9_800, None)


def test_driver_without_mig_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    """All other readings are reported."""
    Library(Driver([Gpu(A), Gpu(B)]), *MIG_FUNCTIONS).install(monkeypatch)
    (gpu,) = gpu_stats()["gpus"]
    assert (gpu["uuid"], gpu["memory_total_mb"]) == (B, 143_771)


@pytest.mark.parametrize("lacks", ["nvmlInitWithFlags", "nvmlDeviceGetCount_v2"])
def test_driver_too_old_to_list_gpus(monkeypatch: pytest.MonkeyPatch, lacks: str) -> None:
    Library(Driver([Gpu(A), Gpu(B)]), lacks).install(monkeypatch)
    stats = gpu_stats()
    assert (stats["available"], stats["gpus"]) == (False, [])
    assert "too old" in stats["reason"]
