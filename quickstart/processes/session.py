"""Detection and stop of a running cluster by the session of its process manager. Standard library only.

    python -m quickstart.processes.session --stop [--home DIR]

supervisord leads its own session. Its programs stay in the session even if supervisord is killed, and the kernel does
not reuse a session's id while one of its processes exists.
"""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from quickstart.options import parse

# Longer than supervisord's stopwaitsecs.
STOP_TIMEOUT_S = 25
# A process that hangs in a driver cannot be killed.
KILL_TIMEOUT_S = 5
POLL_S = 0.05
PROC = Path("/proc")


def pid_file(home: Path) -> Path:
    """Return the pid file of the process manager in `home`; the pid is also its session id."""
    return home / "supervisord.pid"


def config_file(home: Path) -> Path:
    """Return the process manager's configuration file, which is in its command line."""
    return home / "supervisord.conf"


def running_session(home: Path) -> int | None:
    """Return the session of a cluster running in `home`, or None."""
    try:
        session = int(pid_file(home).read_text())
    except (OSError, ValueError):
        return None
    found = members(session)
    command = _command(session) if session in found else ""
    # A leader with another command line got the id after our session had ended. An exiting process has no command
    # line.
    foreign = command and str(config_file(home)) not in command
    return session if found and not foreign else None


def end_session(
    session: int, process: "subprocess.Popen[bytes] | None" = None, stop_timeout_s: float = STOP_TIMEOUT_S
) -> None:
    """Stop the process manager, which stops its programs; finally kill the remaining processes of the session.

    `process` is the manager if it is our child.
    """
    _signal([session], signal.SIGTERM)
    deadline = time.monotonic() + stop_timeout_s
    signalled = False
    while (remaining := _remaining(session, process)) and time.monotonic() < deadline:
        if session not in remaining and not signalled:  # the manager was killed and cannot stop its programs
            _signal(remaining, signal.SIGTERM)
            signalled = True
        time.sleep(POLL_S)
    deadline = time.monotonic() + KILL_TIMEOUT_S
    while (remaining := _remaining(session, process)) and time.monotonic() < deadline:
        _signal(remaining, signal.SIGKILL)
        time.sleep(POLL_S)


def stop_left_over(home: Path) -> None:
    """Stop a cluster that an earlier start left running, and print the result."""
    session = running_session(home)
    if session is None:
        print("No cluster with this folder is running.")
        return
    end_session(session)
    pid_file(home).unlink(missing_ok=True)
    print(f"Stopped the cluster with pid {session}.")


def members(session: int) -> list[int]:
    """Return the running processes of a session, without zombies."""
    found = []
    for pid, is_zombie in _processes():
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if not is_zombie and os.getsid(pid) == session:
                found.append(pid)
    return found


def _remaining(session: int, process: "subprocess.Popen[bytes] | None") -> list[int]:
    if process is not None:
        process.poll()  # reaps it
    return members(session)


def _signal(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def _processes() -> Iterator[tuple[int, bool]]:
    """Yield all pids, and whether they are zombies. From /proc, or from `ps` on macOS."""
    if not (PROC / "self" / "stat").exists():
        listing = subprocess.run(["ps", "-axo", "pid=,stat="], capture_output=True, text=True, check=True).stdout
        for line in listing.splitlines():
            pid, state = line.split()[:2]
            yield int(pid), state.startswith("Z")
        return
    for entry in PROC.iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                # The state follows the name in brackets, which may contain anything.
                yield int(entry.name), (entry / "stat").read_text().rpartition(")")[2].split()[0] in "ZX"


def _command(pid: int) -> str:
    if (PROC / "self" / "cmdline").exists():
        try:
            return (PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            return ""
    return subprocess.run(["ps", "-o", "command=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout


if __name__ == "__main__":
    stop_left_over(parse().home)
