"""GPU readings never block the event loop, even if the driver hangs."""

import asyncio
import threading

import pynvml
import pytest

from kit.service.gpu import GpuReader
from tests.kit.service.nvml import Driver, Gpu

UUID = "GPU-aaaa1111-0000-0000-0000-000000000000"


class Hanging(Driver):
    """A driver that responds only once released."""

    def __init__(self) -> None:
        super().__init__([Gpu(UUID)])
        self.answers = threading.Event()
        self.reads = 0

    def nvmlInit(self) -> None:  # noqa: N802  # NVML's own name
        self.reads += 1
        assert self.answers.wait(20)
        super().nvmlInit()


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Hanging:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    driver = Hanging()
    driver.install(monkeypatch)
    return driver


async def test_hanging_driver_is_reported_in_time(driver: Hanging) -> None:
    """One thread waits, however many polls there are."""
    reader = GpuReader()
    for _ in range(3):
        stats = await reader.read(timeout_s=0.01)
        assert not stats["available"]
        assert "has not responded" in stats["reason"]
    assert driver.reads == 1
    driver.answers.set()
    assert (await reader.read())["gpus"][0]["uuid"] == UUID
    assert driver.reads == 1


async def test_concurrent_reads_share_one_nvml_query(driver: Hanging) -> None:
    reader = GpuReader()
    driver.answers.set()
    first, second = await asyncio.gather(reader.read(), reader.read())
    assert first == second
    assert driver.reads == 1
    await reader.read()
    assert driver.reads == 2


async def test_cancelled_reader_does_not_cancel_the_others(driver: Hanging) -> None:
    reader = GpuReader()
    leaving = asyncio.create_task(reader.read())
    staying = asyncio.create_task(reader.read())
    await asyncio.sleep(0)
    leaving.cancel()
    driver.answers.set()
    assert (await staying)["available"]


async def test_no_driver_returns_at_once(monkeypatch: pytest.MonkeyPatch) -> None:

    def fail() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", fail)
    assert "no NVIDIA driver" in (await GpuReader().read())["reason"]
