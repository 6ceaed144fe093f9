"""Generation with a stub runner: text, limits, stop strings, cancellation."""

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from kit.errors import Busy, InvalidRequest
from services.llm.transformers.generation import Generations, Job, Limits, Run
from services.llm.transformers.token_metrics import TokenMetrics
from services.llm.validation.options import Options

END = 0
LIMITS = Limits(context=20, default_max_tokens=8, max_concurrent=1, max_queue=1)


class StubRunner:
    def __init__(self) -> None:
        self.started: list[Run] = []
        self.cancelled: list[Run] = []

    def start(self, run: Run) -> None:
        self.started.append(run)

    def cancel(self, run: Run) -> None:
        self.cancelled.append(run)

    async def aclose(self) -> None:
        pass


class Letters:
    """Tokenizer of single letters: token 97 is "a"; the end token has no text."""

    def prompt_tokens(self, inputs: Any) -> list[int]:
        return list(inputs["input_ids"])

    def decoder(self, skip_special: bool) -> Callable[[int], str | None]:
        return lambda token: chr(token) if token else None

    def events_to_pieces(self, events: Any) -> list[Any]:
        return list(events)

    def failure(self, message: str) -> Any:
        return RuntimeError(message)


class Setup:
    def __init__(self, options: Options | None = None, prompt: int = 5) -> None:
        self.runner = StubRunner()
        self.registry = CollectorRegistry()
        metrics = TokenMetrics(self.registry, model="tiny")
        self.generations = Generations(self.runner, LIMITS, ends=[END], tools=Letters(), metrics=metrics)
        self.job = Job("a", options or Options())
        self.config = SimpleNamespace(max_new_tokens=None)
        self.prompt = {"input_ids": [97] * prompt}

    async def begin(self) -> tuple[asyncio.Queue[Any], Any]:
        self.generations.admit(self.job)
        queue, pieces = await asyncio.to_thread(
            self.generations.generate_streaming, None, None, self.prompt, self.config, self.job.id
        )
        await asyncio.sleep(0)
        return queue, pieces

    @property
    def run(self) -> Run:
        return self.runner.started[0]


def drain(queue: asyncio.Queue[Any]) -> list[Any]:
    return [queue.get_nowait() for _ in range(queue.qsize())]


async def test_tokens_become_text_and_the_end_token_is_dropped() -> None:
    setup = Setup()
    queue, pieces = await setup.begin()
    setup.run.tokens([104, 105])
    setup.run.tokens([END])
    setup.run.ended(None)
    assert drain(queue) == ["h", "i", None]
    assert pieces.total_tokens == 3
    assert setup.job.finish_reason == "stop"


@pytest.mark.parametrize(
    ("requested", "prompt", "expected"), [(None, 5, 8), (3, 5, 3), (100, 5, 15), (None, 15, 5), (None, 19, 1)]
)
async def test_token_limit_is_the_request_limited_by_the_context(
    requested: int | None, prompt: int, expected: int
) -> None:
    setup = Setup(Options(max_tokens=requested), prompt)
    await setup.begin()
    assert setup.run.max_tokens == expected


@pytest.mark.parametrize(
    ("prompt", "code"), [(20, "context_length_exceeded"), (500, "context_length_exceeded"), (0, None)]
)
async def test_prompt_that_fills_the_context_is_rejected(prompt: int, code: str | None) -> None:
    setup = Setup(prompt=prompt)
    with pytest.raises(InvalidRequest) as refused:
        await setup.begin()
    assert refused.value.code == code


async def test_finish_reason_at_the_limit_depends_on_the_last_token() -> None:
    for last, reason in ((98, "length"), (END, "stop")):
        setup = Setup(Options(max_tokens=2))
        await setup.begin()
        setup.run.tokens([97, last])
        setup.run.ended(None)
        assert setup.job.finish_reason == reason
        assert (setup.config.max_new_tokens is None) == (reason == "stop")


async def test_stop_string_cancels_the_run_immediately() -> None:
    setup = Setup(Options(stop=("cd",)))
    queue, pieces = await setup.begin()
    setup.run.tokens([97, 98, 99])
    setup.run.tokens([100, 101])
    assert setup.runner.cancelled == [setup.run]
    setup.run.tokens([102])
    setup.run.ended(None)
    assert drain(queue) == ["a", "b", None]
    assert pieces.total_tokens == 4
    assert setup.job.finish_reason == "stop"


async def test_held_back_text_is_flushed_at_the_end() -> None:
    setup = Setup(Options(stop=("cd",)))
    queue, _ = await setup.begin()
    setup.run.tokens([97, 99])
    setup.run.ended(None)
    assert drain(queue) == ["a", "c", None]


async def test_cancel_stops_the_run_and_frees_its_place() -> None:
    setup = Setup()
    await setup.begin()
    assert setup.generations.in_flight == 1
    setup.job.cancel()
    setup.job.cancel()
    assert setup.runner.cancelled == [setup.run]
    assert setup.generations.in_flight == 0


async def test_job_cancelled_during_preparation_never_starts() -> None:
    setup = Setup()
    setup.generations.admit(setup.job)
    setup.generations.generate_streaming(None, None, setup.prompt, setup.config, setup.job.id)
    setup.job.cancel()
    await asyncio.sleep(0)
    assert setup.runner.started == []


async def test_full_queue_raises_busy() -> None:
    generations = Setup().generations
    jobs = [Job(str(number), Options()) for number in range(3)]
    generations.admit(jobs[0])
    generations.admit(jobs[1])
    with pytest.raises(Busy) as refused:
        generations.admit(jobs[2])
    assert int(refused.value.headers["Retry-After"]) >= 1
    jobs[0].cancel()
    generations.admit(jobs[2])


async def test_failure_is_reported() -> None:
    setup = Setup()
    queue, _ = await setup.begin()
    setup.run.ended("it broke")
    assert str(drain(queue)[0]) == "it broke"
    assert setup.job.error == "it broke"
