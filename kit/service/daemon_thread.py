"""Blocking calls in daemon threads."""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


async def in_daemon_thread(function: Callable[..., T], *args: Any) -> T:
    """Run `function` in a daemon thread.

    Unlike `asyncio.to_thread`, whose executor is joined at exit: Ctrl-C during a long load must not wait. Raises the
    function's exception; SystemExit, KeyboardInterrupt and StopIteration, which a future cannot carry, become the cause
    of a RuntimeError.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: Exception | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]  # None only where T admits it

    def work() -> None:
        outcome: tuple[T | None, Exception | None]
        try:
            outcome = (function(*args), None)
        except BaseException as error:  # noqa: BLE001  # re-raised by the awaiting task
            outcome = (None, _passable(error))
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(settle, *outcome)

    threading.Thread(target=work, name=getattr(function, "__name__", "work"), daemon=True).start()
    return await future


def _passable(error: BaseException) -> Exception:
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        return error
    wrapped = RuntimeError(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)
    wrapped.__cause__ = error
    return wrapped
