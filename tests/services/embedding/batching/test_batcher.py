"""The batcher: texts of several requests in one batch, limits, cancellation, failures."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from kit.errors import ApiError, Busy, InvalidRequest
from services.embedding.batching.batch_selection import BatchLimits
from services.embedding.batching.batcher import Batcher
from services.embedding.batching.jobs import Work
from services.embedding.batching.metrics import BatchMetrics
from tests.services.embedding.fake_engine import FakeEngine

Make = Callable[..., Batcher]


@pytest.fixture
def deaths() -> list[str]:
    """The reasons of engines that died."""
    return []


@pytest.fixture
async def make(engine: FakeEngine, deaths: list[str]) -> AsyncIterator[Make]:
    made: list[Batcher] = []

    def batcher(*, size: int = 8, tokens: int = 1000, wait_s: float = 0.0, queue: int = 100) -> Batcher:
        metrics = BatchMetrics(CollectorRegistry())
        made.append(
            Batcher(
                engine,
                limits=BatchLimits(size, tokens),
                max_wait_s=wait_s,
                max_queue=queue,
                metrics=metrics,
                on_death=deaths.append,
            )
        )
        return made[-1]

    yield batcher
    engine.gate.set()
    for one in made:
        await one.aclose()


async def held(batcher: Batcher, engine: FakeEngine) -> "asyncio.Task[Any]":
    """Start a request of one text and return once the engine computes it, held at the gate."""
    engine.hold()
    task = asyncio.create_task(batcher.submit(Work(texts=["first"])))
    await asyncio.to_thread(engine.wait_until_computing)
    return task


async def test_requests_share_a_batch(make: Make, engine: FakeEngine) -> None:
    """What arrives while a batch computes makes up the next one, and each request gets its own rows in order."""
    batcher = make()
    first = await held(batcher, engine)
    requests = [Work(texts=[f"text {n}", f"a longer text {n}"]) for n in range(3)]
    tasks = [asyncio.create_task(batcher.submit(work)) for work in requests]
    await asyncio.sleep(0)  # lets every task reach its submit
    engine.gate.set()
    answers = await asyncio.gather(*tasks)
    await first
    assert engine.batches == [[3], [4, 4, 4, 6, 6, 6]]
    for work, answer in zip(requests, answers, strict=True):
        alone = engine.run(engine.tokenize(work.texts, prompt=None, cut=None))
        assert np.array_equal(np.stack(answer.rows), alone)
        assert answer.tokens == 10


async def test_large_requests_are_split(make: Make, engine: FakeEngine) -> None:
    """No batch is larger than the limits, and all rows arrive."""
    answer = await make(size=4, tokens=20).submit(Work(texts=["one two three"] * 10))
    assert [len(batch) for batch in engine.batches] == [4, 4, 2]
    assert len(answer.rows) == 10


async def test_busy(make: Make, engine: FakeEngine) -> None:
    """Beyond MAX_QUEUE texts a request is refused at once; later there is room again."""
    batcher = make(queue=3)
    first = await held(batcher, engine)
    second = asyncio.create_task(batcher.submit(Work(texts=["a", "b"])))
    await asyncio.sleep(0)
    with pytest.raises(Busy, match="MAX_QUEUE is 3"):
        await batcher.submit(Work(texts=["c"]))
    engine.gate.set()
    await asyncio.gather(first, second)
    assert len((await batcher.submit(Work(texts=["c"]))).rows) == 1


async def test_cancelled_work_is_dropped(make: Make, engine: FakeEngine) -> None:
    """A request that is given up before its turn costs no computing, and makes room."""
    batcher = make(queue=4)
    first = await held(batcher, engine)
    given_up = asyncio.create_task(batcher.submit(Work(texts=["x y z", "x y", "x"])))
    await asyncio.sleep(0)
    given_up.cancel()
    await asyncio.wait([given_up])
    kept = asyncio.create_task(batcher.submit(Work(texts=["a b c d e", "a", "b"])))
    await asyncio.sleep(0)
    engine.gate.set()
    await asyncio.gather(first, kept)
    assert engine.batches == [[3], [3, 3, 7]]


async def test_engine_failure(make: Make, engine: FakeEngine) -> None:
    """A batch that fails is answered with an error, and the next one is computed again."""
    batcher = make()
    engine.broken = True
    with pytest.raises(ApiError, match="The engine failed") as caught:
        await batcher.submit(Work(texts=["a"]))
    assert caught.value.status == 500
    engine.broken = False
    assert len((await batcher.submit(Work(texts=["a"]))).rows) == 1


async def test_rows_that_are_missing(make: Make, engine: FakeEngine) -> None:
    """An engine that answers with too few rows fails that batch; the worker goes on, and nobody waits for ever."""
    batcher = make()
    engine.short = True
    with pytest.raises(ApiError, match="The engine failed"):
        await asyncio.wait_for(batcher.submit(Work(texts=["a"])), 10)
    engine.short = False
    assert len((await batcher.submit(Work(texts=["a"]))).rows) == 1


async def test_no_text_is_tokenized_for_a_request_that_is_refused(make: Make, engine: FakeEngine) -> None:
    """Megabytes of texts behind one that is too long would hold up everybody else for nothing."""
    with pytest.raises(InvalidRequest, match="Text 1 has"):
        await make(queue=1000).submit(Work(texts=["a", "word " * 30, *["b"] * 500]))
    assert engine.tokenized < 100


async def test_too_long(make: Make, engine: FakeEngine) -> None:
    """A text over the model's limit is refused with both numbers, and cut when asked."""
    batcher = make()
    long = " ".join("word" for _ in range(30))
    with pytest.raises(InvalidRequest, match=r"Text 1 has 32 tokens; this model takes at most 16"):
        await batcher.submit(Work(texts=["a", long]))
    assert (await batcher.submit(Work(texts=[long], cut=16))).tokens == 16


async def test_single_texts_are_tokenized_together(make: Make, engine: FakeEngine) -> None:
    """One that is too long among them is refused alone; so is one that the tokenizer cannot take."""
    batcher = make()
    first = await held(batcher, engine)
    engine.calls.clear()
    texts = ["one", "two words", "word " * 30, "unspeakable"]
    tasks = [asyncio.create_task(batcher.submit(Work(texts=[text]))) for text in texts]
    prompted = asyncio.create_task(batcher.submit(Work(texts=["one"], prompt="query")))
    await asyncio.sleep(0)
    engine.gate.set()
    answers = await asyncio.gather(first, *tasks, prompted, return_exceptions=True)
    tokens = [answer.tokens if not isinstance(answer, BaseException) else str(answer)[:12] for answer in answers]
    assert tokens == [3, 3, 4, "Text 0 has 3", "The texts co", 4]
    assert engine.calls[0] == 4
    engine.calls.clear()
    first = await held(batcher, engine)
    tasks = [asyncio.create_task(batcher.submit(Work(texts=[text]))) for text in texts[:2] * 20]
    await asyncio.sleep(0)
    engine.gate.set()
    await asyncio.gather(first, *tasks)
    assert engine.calls == [1, 32, 8]


async def test_close_ends_the_thread(make: Make, engine: FakeEngine) -> None:
    """Closing ends the worker and closes the engine."""
    batcher = make()
    await batcher.submit(Work(texts=["a"]))
    await batcher.aclose()
    assert engine.closed
    assert not batcher._thread.is_alive()


async def test_clients_answered_together_are_awaited_together(make: Make, engine: FakeEngine) -> None:
    """After a shared batch the next one waits for its clients to ask again, until it is full."""
    batcher = make(size=3, wait_s=10.0)
    first = await held(batcher, engine)
    tasks = [asyncio.create_task(batcher.submit(Work(texts=[f"{n}"]))) for n in range(3)]
    await asyncio.sleep(0)
    engine.gate.set()
    await asyncio.gather(first, *tasks)
    for n in range(3):  # one after another, as clients do; only the third fills the batch
        tasks[n] = asyncio.create_task(batcher.submit(Work(texts=[f"{n}"])))
        await asyncio.sleep(0.001)
    await asyncio.gather(*tasks)
    assert engine.batches == [[3], [3, 3, 3], [3, 3, 3]]


async def fail(batcher: Batcher, text: str = "a") -> None:
    with pytest.raises(ApiError, match="The engine failed"):
        await batcher.submit(Work(texts=[text]))


async def test_an_engine_that_fails_on_everything_is_dead(make: Make, engine: FakeEngine, deaths: list[str]) -> None:
    """Told once, after the third failure in a row: a CUDA context that broke never comes back."""
    batcher = make()
    await batcher.submit(Work(texts=["a"]))
    engine.broken = True
    await fail(batcher)
    await fail(batcher)
    engine.broken = False
    await batcher.submit(Work(texts=["a"]))
    engine.broken = True
    failures = 0
    while not deaths:
        await fail(batcher)
        failures += 1
    assert failures in (3, 4)  # it is told after the third answer, beside the next request
    await fail(batcher)
    engine.broken = False
    await batcher.submit(Work(texts=["a"]))  # whatever the thread had to tell has been told
    assert len(deaths) == 1
    assert "out of memory" in deaths[0]


async def test_a_text_that_fails_kills_nothing(make: Make, engine: FakeEngine, deaths: list[str]) -> None:
    """However often it is sent: a text that was computed before is computed again after each failure."""
    batcher = make()
    await batcher.submit(Work(texts=["a"]))
    [tokens] = engine.tokenize(["poison"], prompt=None, cut=None)
    engine.poison = tokens.ids
    for _ in range(8):
        await fail(batcher, "poison")
    await batcher.submit(Work(texts=["a"]))
    assert not deaths
