"""SIGHUP: reload SERVICES_FILE now. Without such a file the signal keeps its default: it ends the process."""

import asyncio
import contextlib
import signal
import threading
from collections.abc import Callable, Iterator


def ignore_sighup() -> None:
    """Make SIGHUP harmless for this process and its forks until `on_sighup` handles it."""
    signal.signal(signal.SIGHUP, lambda _signal, _frame: None)


@contextlib.contextmanager
def on_sighup(reload: Callable[[], None]) -> Iterator[None]:
    """Within the block, call `reload` on the running event loop at SIGHUP. Only a main thread gets signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop, before = asyncio.get_running_loop(), signal.getsignal(signal.SIGHUP)
    loop.add_signal_handler(signal.SIGHUP, reload)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGHUP)
        signal.signal(signal.SIGHUP, before)
