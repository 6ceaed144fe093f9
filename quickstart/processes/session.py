"""A cluster that runs: found by its process manager's session, and ended. Standard library only.

    python -m quickstart.processes.session --stop [--home DIR]

supervisord leads a session of its own, and whatever it starts stays in it, also when supervisord itself is killed and
its programs get another parent. The number of a session is not given to a new process while one of its members lives.
"""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from quickstart.options import parse

# Longer than what supervisord gives a program (stopwaitsecs) before it kills it.
STOP_TIMEOUT_S = 25
# One that hangs in a driver cannot even be killed; waiting for it would hang too.
KILL_TIMEOUT_S = 5
POLL_S = 0.05
PROC = Path("/proc")


def pid_file(home: Path) -> Path:
    """Where the process manager of the cluster in `home` writes its pid, which is its session's number too."""
    return home / "supervisord.pid"


def config_file(home: Path) -> Path:
    """The process manager's configuration, which its command line names."""
    return home / "supervisord.conf"


def running_session(home: Path) -> int | None:
    """The session of a cluster that an earlier quickstart left running in `home`, or None."""
    try:
        session = int(pid_file(home).read_text())
    except (OSError, ValueError):
        return None
    found = members(session)
    command = _command(session) if session in found else ""
    # Whoever has the number and is not our process manager got it after our session was gone. One that is just dying
    # has no command line any more.
    foreign = command and str(config_file(home)) not in command
    return session if found and not foreign else None


def end(session: int, process: "subprocess.Popen[bytes] | None" = None) -> None:
    """End the process manager, which ends its programs; SIGKILL to what is left of the session at last.

    `process` is the manager where it is our own child.
    """
    _signal([session], signal.SIGTERM)
    deadline = time.monotonic() + STOP_TIMEOUT_S
    asked = False
    while (left := _left(session, process)) and time.monotonic() < deadline:
        if session not in left and not asked:  # the manager is gone, killed, and cannot tell its programs any more
            _signal(left, signal.SIGTERM)
            asked = True
        time.sleep(POLL_S)
    deadline = time.monotonic() + KILL_TIMEOUT_S
    while (left := _left(session, process)) and time.monotonic() < deadline:
        _signal(left, signal.SIGKILL)
        time.sleep(POLL_S)


def stop_left_over(home: Path) -> None:
    """End a cluster that an earlier start left running, say because its terminal was killed, and tell of it."""
    session = running_session(home)
    if session is None:
        print("No cluster of this folder is running.")
        return
    end(session)
    pid_file(home).unlink(missing_ok=True)
    print(f"Stopped the cluster with pid {session}.")


def members(session: int) -> list[int]:
    """The living processes of a session. A dead one whose parent has not looked yet does not count."""
    found = []
    for pid, dead in _processes():
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if not dead and os.getsid(pid) == session:
                found.append(pid)
    return found


def _left(session: int, process: "subprocess.Popen[bytes] | None") -> list[int]:
    if process is not None:
        process.poll()  # takes note of its end, which frees its number
    return members(session)


def _signal(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def _processes() -> Iterator[tuple[int, bool]]:
    """Every process, and whether it is dead already. From /proc, or from `ps` on macOS, which has no /proc."""
    if not (PROC / "self" / "stat").exists():
        listing = subprocess.run(["ps", "-axo", "pid=,stat="], capture_output=True, text=True, check=True).stdout
        for line in listing.splitlines():
            pid, state = line.split()[:2]
            yield int(pid), state.startswith("Z")
        return
    for entry in PROC.iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                # The state follows the name, which stands in brackets and may hold anything.
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
