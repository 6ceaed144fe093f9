"""The batcher: shared batches, limits, cancellation, failures."""

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
def engine_failures() -> list[str]:
    """Reasons reported for failed engines."""
    return []


@pytest.fixture
async def make(engine: FakeEngine, engine_failures: list[str]) -> AsyncIterator[Make]:
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
                on_engine_failed=engine_failures.append,
            )
        )
        return made[-1]

    yield batcher
    engine.gate.open()
    for one in made:
        await one.aclose()


async def start_paused(batcher: Batcher, engine: FakeEngine) -> "asyncio.Task[Any]":
    """Submit one text and return once the engine computes it, paused at the gate."""
    engine.gate.close()
    task = asyncio.create_task(batcher.submit(Work(texts=["first"])))
    await asyncio.to_thread(engine.gate.wait_until_reached)
    return task


async def test_requests_share_a_batch(make: Make, engine: FakeEngine) -> None:
    """Requests that arrive during a batch form the next one; each gets its own rows in order."""
    batcher = make()
    first = await start_paused(batcher, engine)
    requests = [Work(texts=[f"text {n}", f"a longer text {n}"]) for n in range(3)]
    tasks = [asyncio.create_task(batcher.submit(work)) for work in requests]
    await asyncio.sleep(0)  # lets every task reach its submit
    engine.gate.open()
    answers = await asyncio.gather(*tasks)
    await first
    assert engine.batches == [[3], [4, 4, 4, 6, 6, 6]]
    for work, answer in zip(requests, answers, strict=True):
        alone = engine.run(engine.tokenize(work.texts, prompt=None, truncate_to=None))
        assert np.array_equal(np.stack(answer.rows), alone)
        assert answer.tokens == 10


async def test_large_requests_are_split_within_the_limits(make: Make, engine: FakeEngine) -> None:
    answer = await make(size=4, tokens=20).submit(Work(texts=["one two three"] * 10))
    assert [len(batch) for batch in engine.batches] == [4, 4, 2]
    assert len(answer.rows) == 10


async def test_full_queue_rejects_requests_until_there_is_room(make: Make, engine: FakeEngine) -> None:
    batcher = make(queue=3)
    first = await start_paused(batcher, engine)
    second = asyncio.create_task(batcher.submit(Work(texts=["a", "b"])))
    await asyncio.sleep(0)
    with pytest.raises(Busy, match="MAX_QUEUE is 3"):
        await batcher.submit(Work(texts=["c"]))
    engine.gate.open()
    await asyncio.gather(first, second)
    assert len((await batcher.submit(Work(texts=["c"]))).rows) == 1


async def test_cancelled_work_is_dropped(make: Make, engine: FakeEngine) -> None:
    """Its texts are not computed, and it frees its place in the queue."""
    batcher = make(queue=4)
    first = await start_paused(batcher, engine)
    cancelled = asyncio.create_task(batcher.submit(Work(texts=["x y z", "x y", "x"])))
    await asyncio.sleep(0)
    cancelled.cancel()
    await asyncio.wait([cancelled])
    kept = asyncio.create_task(batcher.submit(Work(texts=["a b c d e", "a", "b"])))
    await asyncio.sleep(0)
    engine.gate.open()
    await asyncio.gather(first, kept)
    assert engine.batches == [[3], [3, 3, 7]]


async def test_failed_batch_is_an_error_and_the_next_is_computed(make: Make, engine: FakeEngine) -> None:
    batcher = make()
    engine.fails = True
    with pytest.raises(ApiError, match="The engine failed") as caught:
        await batcher.submit(Work(texts=["a"]))
    assert caught.value.status == 500
    engine.fails = False
    assert len((await batcher.submit(Work(texts=["a"]))).rows) == 1


async def test_missing_rows_fail_the_batch(make: Make, engine: FakeEngine) -> None:
    """The worker continues, and no request hangs."""
    batcher = make()
    engine.drops_row = True
    with pytest.raises(ApiError, match="The engine failed"):
        await asyncio.wait_for(batcher.submit(Work(texts=["a"])), 10)
    engine.drops_row = False
    assert len((await batcher.submit(Work(texts=["a"]))).rows) == 1


async def test_tokenizing_stops_at_the_first_invalid_text(make: Make, engine: FakeEngine) -> None:
    """Megabytes of texts after it would delay other requests."""
    with pytest.raises(InvalidRequest, match="Text 1 has"):
        await make(queue=1000).submit(Work(texts=["a", "word " * 30, *["b"] * 500]))
    assert engine.tokenized < 100


async def test_overlong_text_is_rejected_or_truncated(make: Make, engine: FakeEngine) -> None:
    batcher = make()
    long = " ".join("word" for _ in range(30))
    with pytest.raises(InvalidRequest, match=r"Text 1 has 32 tokens; this model accepts at most 16"):
        await batcher.submit(Work(texts=["a", long]))
    assert (await batcher.submit(Work(texts=[long], truncate_to=16))).tokens == 16


async def test_single_texts_are_tokenized_in_one_call(make: Make, engine: FakeEngine) -> None:
    """Only the overlong one and the one that the tokenizer rejects fail."""
    batcher = make()
    first = await start_paused(batcher, engine)
    engine.calls.clear()
    texts = ["one", "two words", "word " * 30, "unspeakable"]
    tasks = [asyncio.create_task(batcher.submit(Work(texts=[text]))) for text in texts]
    prompted = asyncio.create_task(batcher.submit(Work(texts=["one"], prompt="query")))
    await asyncio.sleep(0)
    engine.gate.open()
    answers = await asyncio.gather(first, *tasks, prompted, return_exceptions=True)
    tokens = [answer.tokens if not isinstance(answer, BaseException) else str(answer)[:12] for answer in answers]
    assert tokens == [3, 3, 4, "Text 0 has 3", "The texts co", 4]
    assert engine.calls[0] == 4
    engine.calls.clear()
    first = await start_paused(batcher, engine)
    tasks = [asyncio.create_task(batcher.submit(Work(texts=[text]))) for text in texts[:2] * 20]
    await asyncio.sleep(0)
    engine.gate.open()
    await asyncio.gather(first, *tasks)
    assert engine.calls == [1, 32, 8]


async def test_close_stops_the_thread_and_closes_the_engine(make: Make, engine: FakeEngine) -> None:
    batcher = make()
    await batcher.submit(Work(texts=["a"]))
    await batcher.aclose()
    assert engine.closed
    assert not batcher._thread.is_alive()


async def test_after_a_shared_batch_the_next_waits_until_it_is_full(make: Make, engine: FakeEngine) -> None:
    batcher = make(size=3, wait_s=10.0)
    first = await start_paused(batcher, engine)
    tasks = [asyncio.create_task(batcher.submit(Work(texts=[f"{n}"]))) for n in range(3)]
    await asyncio.sleep(0)
    engine.gate.open()
    await asyncio.gather(first, *tasks)
    for n in range(3):  # one after another, as clients do; only the third fills the batch
        tasks[n] = asyncio.create_task(batcher.submit(Work(texts=[f"{n}"])))
        await asyncio.sleep(0.001)
    await asyncio.gather(*tasks)
    assert engine.batches == [[3], [3, 3, 3], [3, 3, 3]]


async def fail(batcher: Batcher, text: str = "a") -> None:
    with pytest.raises(ApiError, match="The engine failed"):
        await batcher.submit(Work(texts=[text]))


async def test_engine_that_fails_on_every_batch_is_reported_once(
    make: Make, engine: FakeEngine, engine_failures: list[str]
) -> None:
    """After the third consecutive failure: a broken CUDA context does not recover."""
    batcher = make()
    await batcher.submit(Work(texts=["a"]))
    engine.fails = True
    await fail(batcher)
    await fail(batcher)
    engine.fails = False
    await batcher.submit(Work(texts=["a"]))
    engine.fails = True
    failures = 0
    while not engine_failures:
        await fail(batcher)
        failures += 1
    assert failures in (3, 4)  # reported after the third response, concurrently with the next request
    await fail(batcher)
    engine.fails = False
    await batcher.submit(Work(texts=["a"]))  # the thread has finished its reports
    assert len(engine_failures) == 1
    assert "out of memory" in engine_failures[0]


async def test_a_text_that_always_fails_does_not_fail_the_engine(
    make: Make, engine: FakeEngine, engine_failures: list[str]
) -> None:
    """After each failure a text that worked before is computed again."""
    batcher = make()
    await batcher.submit(Work(texts=["a"]))
    [tokens] = engine.tokenize(["poison"], prompt=None, truncate_to=None)
    engine.poison = tokens.ids
    for _ in range(8):
        await fail(batcher, "poison")
    await batcher.submit(Work(texts=["a"]))
    assert not engine_failures
