"""Blocking calls in daemon threads."""

import asyncio
import threading

import pytest

from kit.service.daemon_thread import in_daemon_thread


async def test_result_is_returned() -> None:
    """The thread does not keep the process alive."""
    thread = await in_daemon_thread(threading.current_thread)
    assert thread is not threading.current_thread()
    assert thread.daemon
    assert await in_daemon_thread(lambda a, b: a + b, 1, 2) == 3
    assert await in_daemon_thread(dict[str, int]().get, "x") is None


async def test_exception_is_raised_in_the_awaiting_task() -> None:
    with pytest.raises(ZeroDivisionError):
        await in_daemon_thread(lambda: 1 // 0)


@pytest.mark.parametrize("error", [StopIteration("end"), SystemExit(3), KeyboardInterrupt(), GeneratorExit()])
async def test_stop_iteration_and_system_exit_become_runtime_errors(error: BaseException) -> None:
    """Neither hangs the task nor ends the process."""

    def fail() -> None:
        raise error

    with pytest.raises(RuntimeError, match=type(error).__name__) as caught:
        await asyncio.wait_for(in_daemon_thread(fail), 10)
    assert caught.value.__cause__ is error


async def test_awaiting_task_can_be_cancelled() -> None:
    """The late result is ignored."""
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


def test_result_after_the_loop_is_closed_is_dropped() -> None:
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
