"""The serial runner with a stub model: order, cancellation, failure, close."""

import asyncio
import gc
import threading
import weakref
from collections.abc import AsyncIterator
from typing import Any

import pytest

from services.llm.transformers.generation import Run
from services.llm.transformers.sampling import Sampler
from services.llm.transformers.serial import Serial
from services.llm.validation.options import Sampling

pytestmark = pytest.mark.engines

WAIT_S = 10


class Model:
    """`generate` waits at a gate and generates the tokens 1 and 2."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.began = threading.Event()
        self.prompts: list[Any] = []

    def generate(self, *, streamer: Any, prompt: "Prompt", **_: Any) -> None:
        import torch

        self.prompts.append(prompt.text)
        if prompt.text == "broken":
            raise RuntimeError("stub: out of memory")
        self.began.set()
        assert self.gate.wait(WAIT_S), "gate not opened in time"
        for token in (0, 1, 2):
            streamer.put(torch.tensor([token]))


class Prompt:
    """A prepared prompt; with images, many megabytes."""

    def __init__(self, text: str) -> None:
        self.text = text


class Client:
    """Receives the callbacks of a run."""

    def __init__(self, text: str) -> None:
        self.received: list[int] = []
        self.end: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        sampler = Sampler(Sampling(), prompt=[], ends=[])
        self.run = Run(text, {"prompt": Prompt(text)}, sampler, 8, (), self.received.extend, self.end.set_result)


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture
async def serial(model: Model) -> AsyncIterator[Serial]:
    serial = Serial(model, loop=asyncio.get_running_loop())
    yield serial
    model.gate.set()
    await serial.aclose()


async def test_runs_are_processed_in_order(serial: Serial, model: Model) -> None:
    clients = [Client(text) for text in "abc"]
    for client in clients:
        serial.start(client.run)
    model.gate.set()
    for client in clients:
        assert await asyncio.wait_for(client.end, WAIT_S) is None
        assert client.received == [1, 2]
    assert model.prompts == ["a", "b", "c"]


async def test_cancelled_pending_run_is_released_immediately(serial: Serial, model: Model) -> None:
    """Its images must not stay in memory until its turn."""
    first, second = Client("first"), Client("second")
    serial.start(first.run)
    await asyncio.to_thread(model.began.wait, WAIT_S)
    serial.start(second.run)
    prompt = weakref.ref(second.run.inputs["prompt"])
    serial.cancel(second.run)
    del second
    gc.collect()
    assert prompt() is None
    model.gate.set()
    assert await asyncio.wait_for(first.end, WAIT_S) is None
    assert model.prompts == ["first"]


async def test_cancelled_run_makes_room_for_the_next(serial: Serial, model: Model) -> None:
    first, second = Client("first"), Client("second")
    serial.start(first.run)
    await asyncio.to_thread(model.began.wait, WAIT_S)
    serial.start(second.run)
    serial.cancel(first.run)
    model.gate.set()
    assert await asyncio.wait_for(second.end, WAIT_S) is None
    assert (first.received, first.end.done()) == ([], False)


async def test_failure_affects_only_its_run(serial: Serial, model: Model) -> None:
    broken, good = Client("broken"), Client("good")
    serial.start(broken.run)
    serial.start(good.run)
    model.gate.set()
    assert "out of memory" in str(await asyncio.wait_for(broken.end, WAIT_S))
    assert await asyncio.wait_for(good.end, WAIT_S) is None


async def test_close_ends_all_runs_and_the_thread(model: Model) -> None:
    serial = Serial(model, loop=asyncio.get_running_loop())
    clients = [Client("a"), Client("b")]
    for client in clients:
        serial.start(client.run)
    await asyncio.to_thread(model.began.wait, WAIT_S)
    closing = asyncio.create_task(serial.aclose())
    model.gate.set()
    await asyncio.wait_for(closing, WAIT_S)
    assert [await client.end for client in clients] == ["the service is stopping"] * 2
    assert not serial._thread.is_alive()
