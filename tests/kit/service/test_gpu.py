"""GPU statistics: NVML readings, missing readings, visible GPUs."""

import os

import pynvml
import pytest

from kit.service.gpu import gpu_stats
from tests.kit.service.nvml import MIB, Driver, Gpu, failing

A = "GPU-aaaa1111-0000-0000-0000-000000000000"
B = "GPU-bbbb2222-0000-0000-0000-000000000000"
C = "GPU-bbbb3333-0000-0000-0000-000000000000"
S1 = "MIG-1111aaaa-0000-0000-0000-000000000000"
S2 = "MIG-2222bbbb-0000-0000-0000-000000000000"

# What a MIG slice answers to questions that concern the whole board.
SLICE_TELLS_NOT = {
    "UtilizationRates": pynvml.NVML_ERROR_NOT_SUPPORTED,
    "Temperature": pynvml.NVML_ERROR_INVALID_ARGUMENT,
    "PowerUsage": pynvml.NVML_ERROR_NOT_SUPPORTED,
}


@pytest.fixture(autouse=True)
def _no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.fixture
def three(monkeypatch: pytest.MonkeyPatch) -> Driver:
    driver = Driver([Gpu(A), Gpu(B), Gpu(C)])
    driver.install(monkeypatch)
    return driver


@pytest.fixture
def with_mig(monkeypatch: pytest.MonkeyPatch) -> Driver:
    """GPU 0 is whole; GPU 1 is in MIG mode with two slices, at numbers 1 and 3 of its seven."""
    first = Gpu(S1, "NVIDIA A100 MIG 1g.5gb", total=4864 * MIB, used=64 * MIB, ids=(7, 0), broken=SLICE_TELLS_NOT)
    second = Gpu(S2, "NVIDIA A100 MIG 2g.10gb", total=9856 * MIB, ids=(9, 0), broken=SLICE_TELLS_NOT)
    board = Gpu(B, slices=[None, first, None, second, None, None, None])
    driver = Driver([Gpu(A), board])
    driver.install(monkeypatch)
    return driver


def uuids() -> list[str]:
    return [gpu["uuid"] for gpu in gpu_stats()["gpus"]]


def test_body_has_the_fields_and_units_of_the_contract(monkeypatch: pytest.MonkeyPatch) -> None:
    """`processes` is optional and not reported."""
    driver = Driver([Gpu(A)])
    driver.install(monkeypatch)
    assert gpu_stats() == {
        "available": True,
        "gpus": [
            {
                "index": 0,
                "uuid": A,
                "name": "NVIDIA H200",
                "memory_total_mb": 143_771,
                "memory_used_mb": 1_000,
                "memory_free_mb": 142_771,
                "utilization_percent": 37,
                "temperature_c": 41,
                "power_watts": 121.4,
            }
        ],
    }
    assert driver.open == 0


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, "no NVIDIA driver"),
        (pynvml.NVML_ERROR_DRIVER_NOT_LOADED, "kernel module is not loaded"),
        (pynvml.NVML_ERROR_NO_PERMISSION, "no permission"),
        (pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH, "reboot"),
        (pynvml.NVML_ERROR_FUNCTION_NOT_FOUND, "too old"),
        (pynvml.NVML_ERROR_UNKNOWN, "NVML did not start: Unknown Error"),
        (pynvml.NVML_ERROR_TIMEOUT, "NVML did not start: Timeout"),
    ],
)
def test_no_driver_is_a_reason_not_an_error(monkeypatch: pytest.MonkeyPatch, code: int, says: str) -> None:
    monkeypatch.setattr(pynvml, "nvmlInit", failing(code))
    stats = gpu_stats()
    assert (stats["available"], stats["gpus"]) == (False, [])
    assert says in stats["reason"]


@pytest.mark.parametrize("function", ["nvmlDeviceGetCount", "nvmlDeviceGetHandleByIndex", "nvmlDeviceGetName"])
def test_failure_after_init_is_a_reason(three: Driver, monkeypatch: pytest.MonkeyPatch, function: str) -> None:
    """NVML is shut down as well."""
    monkeypatch.setattr(pynvml, function, failing(pynvml.NVML_ERROR_UNKNOWN))
    assert gpu_stats() == {"available": False, "reason": "NVML failed: Unknown Error", "gpus": []}
    assert three.open == 0


def test_driver_too_old_to_list_gpus(three: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    """It initialises but lacks a required function."""
    monkeypatch.setattr(pynvml, "nvmlDeviceGetCount", failing(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND))
    assert "too old" in gpu_stats()["reason"]
    assert three.open == 0


def test_failed_shutdown_keeps_the_readings(three: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pynvml, "nvmlShutdown", failing(pynvml.NVML_ERROR_UNINITIALIZED))
    assert gpu_stats()["available"]


def test_driver_without_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    Driver([]).install(monkeypatch)
    assert "no GPU is visible" in gpu_stats()["reason"]


@pytest.mark.parametrize(
    ("function", "keys"),
    [
        ("UtilizationRates", {"utilization_percent"}),
        ("Temperature", {"temperature_c"}),
        ("PowerUsage", {"power_watts"}),
        ("MemoryInfo", {"memory_total_mb", "memory_used_mb", "memory_free_mb"}),
    ],
)
@pytest.mark.parametrize(
    "code",
    [
        pynvml.NVML_ERROR_NOT_SUPPORTED,
        pynvml.NVML_ERROR_NO_PERMISSION,
        pynvml.NVML_ERROR_INVALID_ARGUMENT,
        pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
    ],
)
def test_unsupported_reading_is_none(monkeypatch: pytest.MonkeyPatch, function: str, keys: set[str], code: int) -> None:
    """For example no MemoryInfo with unified memory."""
    Driver([Gpu(A, broken={function: code})]).install(monkeypatch)
    (gpu,) = gpu_stats()["gpus"]
    assert {key for key, value in gpu.items() if value is None} == keys


@pytest.mark.parametrize("function", ["HandleByIndex", "UUID", "MemoryInfo", "Temperature"])
def test_lost_gpu_does_not_hide_the_others(monkeypatch: pytest.MonkeyPatch, function: str) -> None:
    """A GPU that fell off the bus is reported with its error."""
    driver = Driver([Gpu(A), Gpu(B, broken={function: pynvml.NVML_ERROR_GPU_IS_LOST}), Gpu(C)])
    driver.install(monkeypatch)
    good, lost, other = gpu_stats()["gpus"]
    assert (good["uuid"], lost["index"], lost["error"], other["uuid"]) == (A, 1, "GPU is lost", C)
    assert set(good) | {"error"} == set(lost)
    assert driver.open == 0


def test_loss_of_the_only_gpu_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    Driver([Gpu(A, broken={"HandleByIndex": pynvml.NVML_ERROR_GPU_IS_LOST})]).install(monkeypatch)
    assert gpu_stats()["reason"] == "NVML failed: GPU is lost"


def test_lost_gpu_keeps_its_index(monkeypatch: pytest.MonkeyPatch) -> None:
    Driver([Gpu(A, broken={"HandleByIndex": pynvml.NVML_ERROR_GPU_IS_LOST}), Gpu(B)]).install(monkeypatch)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert uuids() == [B]


@pytest.mark.parametrize(
    ("variable", "visible"),
    [
        ("0", [A]),
        ("2", [C]),
        ("2,0", [C, A]),
        (" 1 , 2 ", [B, C]),
        ("00", [A]),
        ("all", [A, B, C]),
        ("ALL", [A, B, C]),
        ("0,0", [A]),
        (f"0,{A}", [A]),
        (A, [A]),
        (f"{B},{A}", [B, A]),
        ("GPU-aaaa", [A]),
        ("GPU-bbbb3,0", [C, A]),
        ("GPU-a,1", [A, B]),
        ("0,-1,1", [A]),
        ("0,7,1", [A]),
        ("0,,1", [A]),
        ("0,GPU-ffff,1", [A]),
        ("0,none", [A]),
    ],
)
def test_visible_devices(three: Driver, monkeypatch: pytest.MonkeyPatch, variable: str, visible: list[str]) -> None:
    """CUDA's rules: order as given, unique abbreviations, the list ends at the first invalid entry."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    assert uuids() == visible


@pytest.mark.parametrize(
    "variable",
    [
        "",
        " ",
        "-1",
        "3",
        "99999999999999999999",
        "none",
        "NoDevFiles",
        "GPU-ffff",
        "GPU-bbbb",
        "GPU-",
        "gpu-aaaa",
        "aaaa",
        "²",
        "1.0",
        "+1",
        "0x1",
        ",0",
        "MIG-1",
    ],
)
def test_no_visible_device(three: Driver, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    """Empty, invalid and ambiguous values hide every GPU; the reason shows the value."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    stats = gpu_stats()
    assert (stats["available"], stats["gpus"]) == (False, [])
    assert repr(variable) in stats["reason"]


def test_mig_slice_reports_its_own_memory_and_name(with_mig: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", S1)
    (gpu,) = gpu_stats()["gpus"]
    assert (gpu["index"], gpu["uuid"], gpu["name"]) == (1, S1, "NVIDIA A100 MIG 1g.5gb")
    assert (gpu["memory_total_mb"], gpu["memory_used_mb"], gpu["memory_free_mb"]) == (4864, 64, 4800)
    assert (gpu["utilization_percent"], gpu["temperature_c"], gpu["power_watts"]) == (None, None, None)


@pytest.mark.parametrize(
    ("variable", "visible"),
    [
        (None, [A, S1, S2]),
        ("all", [A, S1, S2]),
        (S2, [S2]),
        (f"{S2},{S1}", [S2, S1]),
        ("MIG-2222", [S2]),
        (f"MIG-{B}/7/0", [S1]),
        (f"MIG-{B}/9/0", [S2]),
        (f"MIG-{B}/8/0", []),
        ("MIG-", []),
        ("MIG-ffff", []),
        ("1", [S1]),
        ("0,1", [A, S1]),
        (B, [S1]),
        ("GPU-bbbb", [S1]),
        (f"0,{S2}", [A, S2]),
    ],
)
def test_mig_slices_by_uuid_or_instance(
    with_mig: Driver, monkeypatch: pytest.MonkeyPatch, variable: str | None, visible: list[str]
) -> None:
    """A board means its first slice."""
    if variable is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    assert uuids() == visible


def test_mig_board_without_permission(with_mig: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a container NVML denies the board's memory in MIG mode; the slice's is reported."""
    with_mig.gpus[1].broken["MemoryInfo"] = pynvml.NVML_ERROR_NO_PERMISSION
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert gpu_stats()["gpus"][0]["memory_total_mb"] == 4864


def test_driver_without_mig_functions(three: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    for code in (pynvml.NVML_ERROR_FUNCTION_NOT_FOUND, pynvml.NVML_ERROR_NOT_SUPPORTED):
        monkeypatch.setattr(pynvml, "nvmlDeviceGetMaxMigDeviceCount", failing(code))
        assert uuids() == [A, B, C]


def test_real_library_on_this_machine() -> None:
    before = dict(os.environ)
    stats = gpu_stats()
    assert stats["available"] or stats["reason"]
    assert dict(os.environ) == before
