"""GPU statistics through NVML (`nvidia-ml-py`), for the GPUs that this process may see.

The answer is the body of `GET /gpu-stats`; memory in MiB, power in watts, temperature in degrees Celsius.
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
ANSWERS_WITHIN_S = 3.0
VARIABLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class _Device:
    """A GPU or a MIG slice of one. `names` are its UUIDs as CUDA_VISIBLE_DEVICES spells them."""

    index: int
    handle: Any = field(compare=False)  # a ctypes pointer, which neither hashes nor compares
    names: tuple[str, ...] = ()


class GpuReader:
    """Reads on request without ever blocking the event loop, one read at a time however many ask.

    NVML can hang for minutes on a GPU that is failing; then the answer says so, and one thread waits, not one per poll.
    """

    def __init__(self) -> None:
        self._reading: asyncio.Task[dict[str, Any]] | None = None

    async def read(self, within_s: float = ANSWERS_WITHIN_S) -> dict[str, Any]:
        """The body of `GET /gpu-stats`, after at most `within_s` seconds."""
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(in_daemon_thread(gpu_stats), name="read GPUs")
        try:
            return await asyncio.wait_for(asyncio.shield(self._reading), within_s)
        except TimeoutError:
            return _unavailable(
                f"the NVIDIA driver has not answered for {within_s:g} seconds; see dmesg for Xid errors"
            )


def gpu_stats() -> dict[str, Any]:
    """Read all visible GPUs. Blocks for some milliseconds: call it in a thread.

    Returns `{"available": True, "gpus": [...]}`, or `{"available": False, "reason": ..., "gpus": []}` where there is no
    driver, no permission or no GPU. A value that a GPU does not tell is None; a GPU that fails has `error`. Never
    raises for a missing or broken GPU.
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
        pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: "no NVIDIA driver (libnvidia-ml.so.1 is not there)",
        pynvml.NVML_ERROR_DRIVER_NOT_LOADED: "the NVIDIA driver is installed but its kernel module is not loaded",
        pynvml.NVML_ERROR_NO_PERMISSION: "no permission to talk to the NVIDIA driver",
        pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: (
            "the NVIDIA driver was updated while running: its library and kernel module differ; reboot the machine"
        ),
        pynvml.NVML_ERROR_FUNCTION_NOT_FOUND: (
            "the NVIDIA driver is too old to be asked for its GPUs; install a newer one on the host (nvidia-smi shows "
            "its version)"
        ),
    }
    return known.get(error.value, f"{else_said}: {error}")


def _why_none() -> str:
    chosen = os.environ.get(VARIABLE)
    if chosen is None:
        return "the NVIDIA driver is there, but no GPU is visible to this process"
    return (
        f"{VARIABLE}={chosen!r} names no GPU that is here. In a container that was given some of the machine's GPUs "
        "they count from 0."
    )


def _visible() -> list[_Device]:
    """What CUDA_VISIBLE_DEVICES leaves visible: indices or UUIDs, whole or abbreviated, of GPUs or MIG slices.

    As in CUDA, the list ends at the first entry that names no GPU, and a GPU in MIG mode is seen through its slices
    only: https://docs.nvidia.com/cuda/cuda-programming-guide/05-appendices/environment-variables.html.
    """
    gpus = [list(_slices(index)) for index in range(pynvml.nvmlDeviceGetCount())]
    everything = [device for devices in gpus for device in devices]
    variable = os.environ.get(VARIABLE)
    if variable is None or variable.strip().lower() == "all":
        return everything
    chosen: dict[_Device, None] = {}
    for entry in (part.strip() for part in variable.split(",")):
        if entry.isascii() and entry.isdecimal():
            named = gpus[int(entry)][:1] if int(entry) < len(gpus) else []  # CUDA takes the first slice of a GPU
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
    """The MIG slices of a GPU, or the GPU itself where it has none. At least one device."""
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
            # The second spelling is that of drivers before R470, which newer ones still take.
            names = (pynvml.nvmlDeviceGetUUID(handle), f"MIG-{uuid}/{gi}/{ci}", uuid)
        except pynvml.NVMLError:  # the numbers have gaps where no slice was made, or none that we may see
            continue
        whole = False
        yield _Device(index, handle, names)
    if whole:
        yield _Device(index, gpu, (uuid,))


def _read(device: _Device) -> dict[str, Any]:
    try:
        # Asked again where it failed before: the error is the answer.
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
    """The value, or None where this GPU (a MIG slice, a virtual GPU, unified memory, a laptop) does not tell it."""
    try:
        return read()
    except (
        pynvml.NVMLError_NotSupported,
        pynvml.NVMLError_NoPermission,
        pynvml.NVMLError_InvalidArgument,
        pynvml.NVMLError_FunctionNotFound,
    ):
        return None
