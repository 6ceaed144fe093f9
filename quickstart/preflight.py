"""Checks before the start: ports in use, and a running cluster."""

import errno
import shutil
import socket
import subprocess
from collections.abc import Iterable
from pathlib import Path

from quickstart import QuickstartError
from quickstart.plan import LOOPBACK, Program
from quickstart.processes.session import running_session


def check(home: Path, programs: Iterable[Program]) -> None:
    """Raise QuickstartError if a start would fail."""
    pid = running_session(home)
    if pid is not None:
        raise QuickstartError(
            f"A cluster with this folder is already running (pid {pid}). "
            "Use it, or stop it with: scripts/quickstart.sh --stop"
        )
    in_use = [program for program in programs if is_port_in_use(program.port)]
    if in_use:
        lines = [f"  {program.port} ({program.name}){_holder(program.port)}" for program in in_use]
        raise QuickstartError(
            "These ports are in use:\n" + "\n".join(lines) + "\n"
            "Stop the processes that use them, or use other ports: scripts/quickstart.sh --port-offset 1000"
        )


def is_port_in_use(port: int) -> bool:
    """Return whether another process listens on `port` of the loopback interface."""
    with socket.socket() as probe:
        # Like the servers: a port with connections in TIME_WAIT is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError as error:
            return error.errno == errno.EADDRINUSE
    return False


def _holder(port: int) -> str:
    """Return the process that listens on `port`, from `lsof` or `ss`; empty if unknown."""
    lsof, ss = shutil.which("lsof"), shutil.which("ss")
    if lsof:
        command = [lsof, "-nP", f"-iTCP:{port}", "-sTCP:LISTEN", "-Fpc"]
        fields = {line[0]: line[1:] for line in _output(command) if line}
        if "p" in fields:
            return f", used by {fields.get('c', 'a process')} (pid {fields['p']})"
    elif ss:
        for line in _output([ss, "-Hltnp", f"sport = :{port}"]):
            if "users:((" in line:
                return ", used by " + line.split("users:((")[1].split("))")[0]
    return ""


def _output(command: list[str]) -> list[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()
