"""Several processes on one port: forked, watched, started again when they die, ended together."""

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

# A worker that dies sooner than this after its start, in seconds, is started again only when this time is over.
SETTLED_S = 2.0
# What ending takes longer than a worker's own grace.
REAP_S = 5.0
_STOP = (signal.SIGTERM, signal.SIGINT)


class Workers:
    """The parent's side. It has no event loop and no thread: what is forked must find nothing half done."""

    def __init__(
        self,
        count: int,
        work: Callable[[int], None],
        died: Callable[[int], None],
        *,
        told_on: Collection[signal.Signals] = (),
    ) -> None:
        """`work` is called in each new process with the worker's number, `died` in the parent when it has ended.

        `told_on` are signals that are for the workers: the parent passes them on.
        """
        self._count = count
        self._work = work
        self._died = died
        self._told_on = frozenset(told_on)
        self._watched = {*_STOP, signal.SIGCHLD, *told_on}
        self._workers: dict[int, int] = {}
        self._started = [0.0] * count
        # When those are started that must wait, by number.
        self._due: dict[int, float] = {}

    def run(self) -> None:
        """Serve until SIGINT or SIGTERM. After SIGINT it returns, after SIGTERM this process ends by that signal.

        Exits with the code of a worker that finds that it cannot be configured at all.
        """
        before = signal.pthread_sigmask(signal.SIG_BLOCK, self._watched)
        for number in range(self._count):
            self._start(number)
        stop = self._watch()
        self._end_all()
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
            self._be(number)
        self._workers[pid] = number

    def _be(self, number: int) -> None:
        """The life of a worker. It never returns into what the parent was doing."""
        code = 1
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, self._watched)
            self._work(number)
            code = 0
        except SystemExit as ending:
            code = ending.code if isinstance(ending.code, int) else 1
        except BaseException:  # noqa: BLE001  # whatever it is ends here: told, and the process with it
            traceback.print_exc()
        finally:
            with contextlib.suppress(OSError, ValueError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)

    def _watch(self) -> int:
        """Start again what dies; returns the signal to stop by, or EXIT_CONFIG."""
        while True:
            now = time.monotonic()
            for number in [one for one, at in self._due.items() if at <= now]:
                del self._due[number]
                self._start(number)
            wait = min(self._due.values(), default=now + 3600.0) - now
            told = signal.sigtimedwait(self._watched, wait)
            if told is not None and told.si_signo in _STOP:
                return told.si_signo
            if told is not None and told.si_signo in self._told_on:
                self._tell(signal.Signals(told.si_signo))
            for number, code in self._reap():
                if code == EXIT_CONFIG:
                    return EXIT_CONFIG
                log.error("a worker has ended and is started again", worker=number, status=code)
                self._due[number] = max(self._started[number] + SETTLED_S, time.monotonic())

    def _reap(self) -> list[tuple[int, int]]:
        """The workers that have ended, with their exit codes; a signal's number is negative."""
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
                self._died(number)
                ended.append((number, os.waitstatus_to_exitcode(status)))
        return ended

    def _end_all(self) -> None:
        """Let every worker finish what it has begun; who does not come to an end is killed."""
        self._tell(signal.SIGTERM)
        deadline = time.monotonic() + GRACEFUL_SHUTDOWN_S + REAP_S
        while self._workers:
            left = deadline - time.monotonic()
            told = signal.sigtimedwait(self._watched, max(left, 0.0))
            if told is None or told.si_signo == signal.SIGINT:
                self._tell(signal.SIGKILL)
            self._reap()

    def _tell(self, sign: signal.Signals) -> None:
        for pid in self._workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, sign)
