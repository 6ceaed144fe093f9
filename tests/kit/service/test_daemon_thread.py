"""Blocking work in a thread that may be left behind."""

import asyncio
import threading

import pytest

from kit.service.daemon_thread import in_daemon_thread


async def test_result() -> None:
    """The thread's result comes back; the thread does not hold the process."""
    thread = await in_daemon_thread(threading.current_thread)
    assert thread is not threading.current_thread()
    assert thread.daemon
    assert await in_daemon_thread(lambda a, b: a + b, 1, 2) == 3
    assert await in_daemon_thread(dict[str, int]().get, "x") is None


async def test_error() -> None:
    """The thread's error is raised where it is awaited."""
    with pytest.raises(ZeroDivisionError):
        await in_daemon_thread(lambda: 1 // 0)


@pytest.mark.parametrize("error", [StopIteration("end"), SystemExit(3), KeyboardInterrupt(), GeneratorExit()])
async def test_errors_that_cannot_pass(error: BaseException) -> None:
    """`next()` on nothing, or an engine that calls sys.exit(), is an error of the work: neither hangs nor ends us."""

    def fail() -> None:
        raise error

    with pytest.raises(RuntimeError, match=type(error).__name__) as caught:
        await asyncio.wait_for(in_daemon_thread(fail), 10)
    assert caught.value.__cause__ is error


async def test_cancelled() -> None:
    """Who waits may stop waiting while the thread is still at it; its late result disturbs nobody."""
    started, go_on, ended = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        started.set()
        go_on.wait(10)
        ended.set()

    task = asyncio.create_task(in_daemon_thread(work))
    await asyncio.to_thread(started.wait, 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    go_on.set()
    await asyncio.to_thread(ended.wait, 10)


def test_loop_that_has_gone() -> None:
    """A result after the end of the event loop is dropped without a sound."""
    started, go_on = threading.Event(), threading.Event()
    threads: list[threading.Thread] = []

    def work() -> None:
        threads.append(threading.current_thread())
        started.set()
        go_on.wait(10)

    async def leave() -> None:
        task = asyncio.create_task(in_daemon_thread(work))
        await asyncio.to_thread(started.wait, 10)
        task.cancel()

    asyncio.run(leave())
    go_on.set()
    threads[0].join(10)
    assert not threads[0].is_alive()
