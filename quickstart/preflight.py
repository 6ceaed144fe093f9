"""What is checked before anything starts: ports, and a cluster left running by an earlier start."""

import errno
import shutil
import socket
import subprocess
from collections.abc import Iterable
from pathlib import Path

from quickstart.plan import LOOPBACK, Program
from quickstart.processes.session import running_session


class PreflightError(Exception):
    """The cluster cannot start here and now; the message says why and what to do."""


def check(home: Path, programs: Iterable[Program]) -> None:
    """Raises PreflightError when a start would fail."""
    pid = running_session(home)
    if pid is not None:
        raise PreflightError(
            f"A cluster of this folder is running already (pid {pid}). "
            "Use it, or end it with: scripts/quickstart.sh --stop"
        )
    taken = [program for program in programs if _is_taken(program.port)]
    if taken:
        lines = [f"  {program.port} ({program.name}){_holder(program.port)}" for program in taken]
        raise PreflightError(
            "These ports are taken:\n" + "\n".join(lines) + "\n"
            "Stop what listens there, or move the whole cluster: scripts/quickstart.sh --port-offset 1000"
        )


def _is_taken(port: int) -> bool:
    with socket.socket() as probe:
        # As the servers do: a port whose last connections linger in TIME_WAIT is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError as error:
            return error.errno == errno.EADDRINUSE
    return False


def _holder(port: int) -> str:
    """Who listens on `port`, where `lsof` or `ss` tells; empty otherwise."""
    lsof, ss = shutil.which("lsof"), shutil.which("ss")
    if lsof:
        command = [lsof, "-nP", f"-iTCP:{port}", "-sTCP:LISTEN", "-Fpc"]
        fields = {line[0]: line[1:] for line in _output(command) if line}
        if "p" in fields:
            return f", held by {fields.get('c', 'a process')} (pid {fields['p']})"
    elif ss:
        for line in _output([ss, "-Hltnp", f"sport = :{port}"]):
            if "users:((" in line:
                return ", held by " + line.split("users:((")[1].split("))")[0]
    return ""


def _output(command: list[str]) -> list[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()
