"""GPU statistics from NVML (`nvidia-ml-py`) for the GPUs visible to this process: the body of `GET /gpu-stats`.

Memory in MiB, power in watts, temperature in degrees Celsius.
"""

import asyncio
import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pynvml

from kit.service.daemon_thread import in_daemon_thread

MIB = 1024 * 1024
READINGS = (
    "memory_total_mb",
    "memory_used_mb",
    "memory_free_mb",
    "utilization_percent",
    "temperature_c",
    "power_watts",
)
READ_TIMEOUT_S = 3.0
VARIABLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class _Device:
    """A GPU or a MIG slice of one. `names` are its UUIDs as CUDA_VISIBLE_DEVICES spells them."""

    index: int
    handle: Any = field(compare=False)  # a ctypes pointer, which neither hashes nor compares
    names: tuple[str, ...] = ()


class GpuReader:
    """Reader that never blocks the event loop and runs one read at a time for any number of callers.

    NVML can hang for minutes on a failing GPU; then the result says so, and one thread waits, not one per poll.
    """

    def __init__(self) -> None:
        self._reading: asyncio.Task[dict[str, Any]] | None = None

    async def read(self, timeout_s: float = READ_TIMEOUT_S) -> dict[str, Any]:
        """Return the body of `GET /gpu-stats` within `timeout_s` seconds."""
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(in_daemon_thread(gpu_stats), name="read GPUs")
        try:
            return await asyncio.wait_for(asyncio.shield(self._reading), timeout_s)
        except TimeoutError:
            return _unavailable(
                f"the NVIDIA driver has not responded for {timeout_s:g} seconds; see dmesg for Xid errors"
            )


def gpu_stats() -> dict[str, Any]:
    """Read all visible GPUs. Blocks for some milliseconds: call it in a thread.

    Returns `{"available": True, "gpus": [...]}`, or `{"available": False, "reason": ..., "gpus": []}` where there is no
    driver, no permission or no GPU. An unsupported value is None; a failing GPU has `error`. Never raises for a missing
    or broken GPU.
    """
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return _unavailable(_why(error, "NVML did not start"))
    try:
        gpus = [_read(device) for device in _visible()]
    except pynvml.NVMLError as error:
        return _unavailable(_why(error, "NVML failed"))
    finally:
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()
    if not gpus:
        return _unavailable(_why_none())
    if all("error" in gpu for gpu in gpus):
        return _unavailable(f"NVML failed: {gpus[0]['error']}")
    return {"available": True, "gpus": gpus}


def _unavailable(reason: str) -> dict[str, Any]:
    return {"available": False, "reason": reason, "gpus": []}


def _why(error: pynvml.NVMLError, else_said: str) -> str:
    known = {
        pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: "no NVIDIA driver (libnvidia-ml.so.1 not found)",
        pynvml.NVML_ERROR_DRIVER_NOT_LOADED: "the NVIDIA driver is installed but its kernel module is not loaded",
        pynvml.NVML_ERROR_NO_PERMISSION: "no permission to use the NVIDIA driver",
        pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: (
            "the NVIDIA driver was updated while running: its library and kernel module differ; reboot the machine"
        ),
        pynvml.NVML_ERROR_FUNCTION_NOT_FOUND: (
            "the NVIDIA driver is too old to list its GPUs; install a newer one on the host (nvidia-smi shows "
            "its version)"
        ),
    }
    return known.get(error.value, f"{else_said}: {error}")


def _why_none() -> str:
    chosen = os.environ.get(VARIABLE)
    if chosen is None:
        return "the NVIDIA driver is present, but no GPU is visible to this process"
    return f"{VARIABLE}={chosen!r} matches no GPU. In a container with some of the machine's GPUs, indices start at 0."


def _visible() -> list[_Device]:
    """Return the devices in CUDA_VISIBLE_DEVICES: indices or UUIDs, full or abbreviated, of GPUs or MIG slices.

    As in CUDA, the list ends at the first invalid entry, and a GPU in MIG mode is visible only as its slices: https://docs.nvidia.com/cuda/cuda-programming-guide/05-appendices/environment-variables.html.
    """
    gpus = [list(_slices(index)) for index in range(pynvml.nvmlDeviceGetCount())]
    everything = [device for devices in gpus for device in devices]
    variable = os.environ.get(VARIABLE)
    if variable is None or variable.strip().lower() == "all":
        return everything
    chosen: dict[_Device, None] = {}
    for entry in (part.strip() for part in variable.split(",")):
        if entry.isascii() and entry.isdecimal():
            named = gpus[int(entry)][:1] if int(entry) < len(gpus) else []  # CUDA uses the first slice of a GPU
        elif entry.startswith("GPU-"):
            by_gpu = [devices[:1] for devices in gpus if any(name.startswith(entry) for name in devices[0].names)]
            named = by_gpu[0] if len(by_gpu) == 1 else []
        elif entry.startswith("MIG-"):
            named = [device for device in everything if any(name.startswith(entry) for name in device.names)]
        else:
            named = []
        if len(named) != 1:
            break
        chosen[named[0]] = None
    return list(chosen)


def _slices(index: int) -> Iterator[_Device]:
    """Yield the MIG slices of a GPU, or the GPU itself if it has none. At least one device."""
    try:
        gpu = pynvml.nvmlDeviceGetHandleByIndex(index)
        uuid = pynvml.nvmlDeviceGetUUID(gpu)
    except pynvml.NVMLError:
        yield _Device(index, None)
        return
    whole = True
    for number in range(_supported(lambda: pynvml.nvmlDeviceGetMaxMigDeviceCount(gpu)) or 0):
        try:
            handle = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu, number)
            gi, ci = pynvml.nvmlDeviceGetGpuInstanceId(handle), pynvml.nvmlDeviceGetComputeInstanceId(handle)
            # The second form is that of drivers before R470, still accepted by newer ones.
            names = (pynvml.nvmlDeviceGetUUID(handle), f"MIG-{uuid}/{gi}/{ci}", uuid)
        except pynvml.NVMLError:  # numbers have gaps: slices that do not exist or are not visible
            continue
        whole = False
        yield _Device(index, handle, names)
    if whole:
        yield _Device(index, gpu, (uuid,))


def _read(device: _Device) -> dict[str, Any]:
    try:
        # Retried if it failed in _slices: the error goes into the result.
        handle = device.handle or pynvml.nvmlDeviceGetHandleByIndex(device.index)
        memory = _supported(lambda: pynvml.nvmlDeviceGetMemoryInfo(handle))
        return {
            "index": device.index,
            "uuid": pynvml.nvmlDeviceGetUUID(handle),
            "name": pynvml.nvmlDeviceGetName(handle),
            "memory_total_mb": memory.total // MIB if memory else None,
            "memory_used_mb": memory.used // MIB if memory else None,
            "memory_free_mb": memory.free // MIB if memory else None,
            "utilization_percent": _supported(lambda: pynvml.nvmlDeviceGetUtilizationRates(handle).gpu),
            "temperature_c": _supported(lambda: pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU)),
            "power_watts": _supported(lambda: round(pynvml.nvmlDeviceGetPowerUsage(handle) / 1000, 1)),
        }
    except pynvml.NVMLError as error:
        uuid = device.names[0] if device.names else None
        return {"index": device.index, "uuid": uuid, "name": None, **dict.fromkeys(READINGS), "error": str(error)}


def _supported(read: Callable[[], Any]) -> Any:
    """Return the value, or None if this GPU (MIG slice, virtual GPU, unified memory, laptop) does not support it."""
    try:
        return read()
    except (
        pynvml.NVMLError_NotSupported,
        pynvml.NVMLError_NoPermission,
        pynvml.NVMLError_InvalidArgument,
        pynvml.NVMLError_FunctionNotFound,
    ):
        return None
