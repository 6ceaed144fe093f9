"""Supervisor of several worker processes on one port: forks, restarts and stops them."""

import contextlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Collection

import structlog

from kit.web.server import EXIT_CONFIG, GRACEFUL_SHUTDOWN_S

log = structlog.get_logger(__name__)

# A worker is restarted at the earliest this long after its last start, in seconds.
MIN_RESTART_INTERVAL_S = 2.0
# How long workers have to end after their own grace period, in seconds.
REAP_S = 5.0
_STOP = (signal.SIGTERM, signal.SIGINT)


class Supervisor:
    """The parent process of the workers. It has no event loop and no threads, because it forks."""

    def __init__(
        self,
        count: int,
        work: Callable[[int], None],
        on_exit: Callable[[int], None],
        *,
        forwarded: Collection[signal.Signals] = (),
    ) -> None:
        """`work` is called in each new process with the worker's number, `on_exit` in the parent when it has ended.

        `forwarded` are signals that the parent forwards to the workers.
        """
        self._count = count
        self._work = work
        self._on_exit = on_exit
        self._forwarded = frozenset(forwarded)
        self._watched = {*_STOP, signal.SIGCHLD, *forwarded}
        self._workers: dict[int, int] = {}
        self._started = [0.0] * count
        # When ended workers are restarted, by number.
        self._restart_at: dict[int, float] = {}

    def run(self) -> None:
        """Serve until SIGINT or SIGTERM. Returns after SIGINT; after SIGTERM this process ends by that signal.

        Exits with EXIT_CONFIG if a worker does.
        """
        before = signal.pthread_sigmask(signal.SIG_BLOCK, self._watched)
        for number in range(self._count):
            self._start(number)
        stop = self._watch()
        self._stop_all()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if stop == signal.SIGTERM:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.raise_signal(signal.SIGTERM)
        elif stop == EXIT_CONFIG:
            raise SystemExit(EXIT_CONFIG)

    def _start(self, number: int) -> None:
        self._started[number] = time.monotonic()
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            self._run_worker(number)
        self._workers[pid] = number

    def _run_worker(self, number: int) -> None:
        """Run a worker in this new process, then exit."""
        code = 1
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, self._watched)
            self._work(number)
            code = 0
        except SystemExit as request:
            code = request.code if isinstance(request.code, int) else 1
        except BaseException:  # noqa: BLE001  # logged; the process ends here
            traceback.print_exc()
        finally:
            with contextlib.suppress(OSError, ValueError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)

    def _watch(self) -> int:
        """Restart workers that end; return the signal to stop by, or EXIT_CONFIG."""
        while True:
            now = time.monotonic()
            for number in [one for one, at in self._restart_at.items() if at <= now]:
                del self._restart_at[number]
                self._start(number)
            wait = min(self._restart_at.values(), default=now + 3600.0) - now
            received = signal.sigtimedwait(self._watched, wait)
            if received is not None and received.si_signo in _STOP:
                return received.si_signo
            if received is not None and received.si_signo in self._forwarded:
                self._send(signal.Signals(received.si_signo))
            for number, code in self._reap():
                if code == EXIT_CONFIG:
                    return EXIT_CONFIG
                log.error("worker ended, restarting it", worker=number, status=code)
                self._restart_at[number] = max(self._started[number] + MIN_RESTART_INTERVAL_S, time.monotonic())

    def _reap(self) -> list[tuple[int, int]]:
        """Return the workers that have ended with their exit codes, negative for a signal."""
        ended: list[tuple[int, int]] = []
        while self._workers:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            number = self._workers.pop(pid, None)
            if number is not None:
                self._on_exit(number)
                ended.append((number, os.waitstatus_to_exitcode(status)))
        return ended

    def _stop_all(self) -> None:
        """Let all workers finish their requests; kill those that exceed the grace period."""
        self._send(signal.SIGTERM)
        deadline = time.monotonic() + GRACEFUL_SHUTDOWN_S + REAP_S
        while self._workers:
            left = deadline - time.monotonic()
            received = signal.sigtimedwait(self._watched, max(left, 0.0))
            if received is None or received.si_signo == signal.SIGINT:
                self._send(signal.SIGKILL)
            self._reap()

    def _send(self, signum: signal.Signals) -> None:
        for pid in self._workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signum)
