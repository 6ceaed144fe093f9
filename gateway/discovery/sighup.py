"""SIGHUP: read SERVICES_FILE again now. Where there is none, the signal ends the program, as it does any other."""

import asyncio
import contextlib
import signal
import threading
from collections.abc import Callable, Iterator


def bear_hangups() -> None:
    """From now on SIGHUP ends neither this process nor those that it forks, though nobody may act on it yet."""
    signal.signal(signal.SIGHUP, lambda _signal, _frame: None)


@contextlib.contextmanager
def on_hangup(act: Callable[[], None]) -> Iterator[None]:
    """Within the block, SIGHUP calls `act` on the running event loop. Only a main thread takes signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop, before = asyncio.get_running_loop(), signal.getsignal(signal.SIGHUP)
    loop.add_signal_handler(signal.SIGHUP, act)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGHUP)
        signal.signal(signal.SIGHUP, before)
