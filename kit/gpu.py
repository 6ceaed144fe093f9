"""GPU statistics through NVML (`nvidia-ml-py`), for the GPUs that this process may see.

The answer is the body of `GET /gpu-stats`; memory in MiB, power in watts, temperature in degrees Celsius.
"""

import os
from collections.abc import Callable
from typing import Any

import pynvml

MIB = 1024 * 1024


def gpu_stats() -> dict[str, Any]:
    """Read all visible GPUs. Blocks for some milliseconds: call it in a thread.

    Returns `{"available": True, "gpus": [...]}`, or `{"available": False, "reason": ..., "gpus": []}` where there is no
    driver, no permission or no GPU. Never raises for a missing or broken GPU.
    """
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return _unavailable(_why_no_nvml(error))
    try:
        handles = _visible_handles()
        if not handles:
            return _unavailable("the NVIDIA driver is there, but no GPU is visible to this process")
        return {"available": True, "gpus": [_read(handle) for handle in handles]}
    except pynvml.NVMLError as error:
        return _unavailable(f"NVML failed: {error}")
    finally:
        pynvml.nvmlShutdown()


def _unavailable(reason: str) -> dict[str, Any]:
    return {"available": False, "reason": reason, "gpus": []}


def _why_no_nvml(error: pynvml.NVMLError) -> str:
    known = {
        pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: "no NVIDIA driver (libnvidia-ml.so.1 is not there)",
        pynvml.NVML_ERROR_DRIVER_NOT_LOADED: "the NVIDIA driver is installed but its kernel module is not loaded",
        pynvml.NVML_ERROR_NO_PERMISSION: "no permission to talk to the NVIDIA driver",
        pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: (
            "the NVIDIA driver was updated while running: its library and kernel module differ; reboot the machine"
        ),
    }
    return known.get(error.value, f"NVML did not start: {error}")


def _visible_handles() -> list[Any]:
    """Handles of the GPUs that CUDA_VISIBLE_DEVICES leaves visible: indices or UUIDs, whole or abbreviated.

    As in CUDA, the list ends at the first entry that names no GPU.
    """
    handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None or visible.strip().lower() == "all":
        return handles
    chosen = []
    for entry in (part.strip() for part in visible.split(",")):
        match = _by_entry(handles, entry)
        if match is None:
            break
        chosen.append(match)
    return chosen


def _by_entry(handles: list[Any], entry: str) -> Any | None:
    if entry.isdigit():
        return handles[int(entry)] if int(entry) < len(handles) else None
    if not entry.startswith("GPU-"):
        return None
    return next((handle for handle in handles if pynvml.nvmlDeviceGetUUID(handle).startswith(entry)), None)


def _read(handle: Any) -> dict[str, Any]:
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    return {
        "index": pynvml.nvmlDeviceGetIndex(handle),
        "uuid": pynvml.nvmlDeviceGetUUID(handle),
        "name": pynvml.nvmlDeviceGetName(handle),
        "memory_total_mb": memory.total // MIB,
        "memory_used_mb": memory.used // MIB,
        "memory_free_mb": memory.free // MIB,
        "utilization_percent": _supported(lambda: pynvml.nvmlDeviceGetUtilizationRates(handle).gpu),
        "temperature_c": _supported(lambda: pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU)),
        "power_watts": _supported(lambda: round(pynvml.nvmlDeviceGetPowerUsage(handle) / 1000, 1)),
    }


def _supported(read: Callable[[], Any]) -> Any:
    """The value, or None where this GPU (a MIG slice, a virtual GPU, a laptop) does not tell it."""
    try:
        return read()
    except (pynvml.NVMLError_NotSupported, pynvml.NVMLError_NoPermission):
        return None
