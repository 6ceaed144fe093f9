"""The cluster's processes under supervisord: started one by one, restarted when they die, ended together."""

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import tempfile
import time
import xmlrpc.client
from collections.abc import Iterable
from pathlib import Path

from supervisor.xmlrpc import SupervisorTransport

from kit.server import EXIT_CONFIG
from quickstart.options import ROOT
from quickstart.plan import Program

START_TIMEOUT_S = 15
# Longer than what supervisord gives a program (stopwaitsecs) before it kills it.
STOP_TIMEOUT_S = 25
LONGEST_SOCKET_PATH = 100  # sockaddr_un holds 108 bytes on Linux and 104 on macOS


class ProcessError(Exception):
    """A process could not be started or has given up; the message says which, why, and where its log is."""


class Supervisor:
    """supervisord in a session of its own, so that Ctrl-C reaches us alone and we end it in order.

    Use as a context manager: leaving it stops every process, whatever happened.
    """

    def __init__(self, home: Path, programs: Iterable[Program]) -> None:
        self._programs = {program.name: program for program in programs}
        self.logs = home / "logs"
        self._pid_file = home / "supervisord.pid"
        self._config = home / "supervisord.conf"
        self._socket = _socket_path(home)
        self._process: subprocess.Popen[bytes] | None = None
        self._transport = SupervisorTransport(None, None, serverurl=f"unix://{self._socket}")
        self._rpc = xmlrpc.client.ServerProxy("http://127.0.0.1", transport=self._transport)

    def __enter__(self) -> "Supervisor":
        """Start supervisord, with no program running yet. Raises ProcessError."""
        self.logs.mkdir(parents=True, exist_ok=True)
        for program in self._programs:
            (self.logs / f"{program}.log").write_bytes(b"")
        self._config.write_text(self._configuration())
        command = [sys.executable, "-m", "supervisor.supervisord", "--nodaemon", "-c", str(self._config)]
        with (self.logs / "supervisord.log").open("wb") as log:
            self._process = subprocess.Popen(
                command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        try:
            self._connect()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, name: str) -> None:
        """Start one program; its readiness shows in its `/health`."""
        self._rpc.supervisor.startProcess(name, False)

    def check(self) -> None:
        """Raises ProcessError when a program has given up: its configuration is wrong or it died again and again."""
        for info in self._rpc.supervisor.getAllProcessInfo():  # type: ignore[union-attr]  # XML-RPC is untyped
            if info["statename"] == "FATAL" or (info["statename"] == "EXITED" and info["exitstatus"] != 0):  # type: ignore[index,call-overload]
                raise ProcessError(self._last_words(str(info["name"])))  # type: ignore[index,call-overload]

    def stop(self) -> None:
        """End every program (SIGTERM, later SIGKILL) and supervisord. Returns when none is left."""
        if self._process is None:
            return
        self._transport.close()
        end(self._process.pid, self._process)
        self._process = None
        self._socket.unlink(missing_ok=True)
        self._pid_file.unlink(missing_ok=True)

    def _connect(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                self._rpc.supervisor.getState()
            except (OSError, xmlrpc.client.Error) as error:
                self._transport.close()
                assert self._process is not None
                if self._process.poll() is not None or time.monotonic() > deadline:
                    log = self.logs / "supervisord.log"
                    raise ProcessError(f"supervisord did not start:\n{log.read_text().strip()[-1500:]}") from error
                time.sleep(0.05)
            else:
                return

    def _last_words(self, name: str) -> str:
        log = self.logs / f"{name}.log"
        with contextlib.suppress(OSError):
            lines = log.read_text(errors="replace").splitlines()[-12:]
            return f"{name} has stopped. The end of its log, {log}:\n\n" + "\n".join(f"  {line}" for line in lines)
        return f"{name} has stopped, and its log {log} cannot be read."

    def _configuration(self) -> str:
        sections = [
            f"[supervisord]\nnodaemon=true\nlogfile=/dev/stdout\nlogfile_maxbytes=0\nloglevel=warn\n"
            f"pidfile={_escaped(self._pid_file)}\n",
            f"[unix_http_server]\nfile={_escaped(self._socket)}\nchmod=0600\n",
            "[rpcinterface:supervisor]\n"
            "supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface\n",
        ]
        for program in self._programs.values():
            environment = ",".join(f'{key}="{_escaped(value)}"' for key, value in program.environment.items())
            command = " ".join(f'"{_escaped(part)}"' for part in program.command)
            sections.append(
                f"[program:{program.name}]\ncommand={command}\ndirectory={_escaped(ROOT)}\n"
                f"environment={environment}\nautostart=false\nautorestart=unexpected\n"
                # A wrong setting or a taken port does not mend itself: such an exit is not tried again.
                f"exitcodes=0,{EXIT_CONFIG}\n"
                f"startsecs=2\nstartretries=1\nstopsignal=TERM\nstopwaitsecs=15\nstopasgroup=true\nkillasgroup=true\n"
                f"redirect_stderr=true\nstdout_logfile={_escaped(self.logs / program.name)}.log\n"
                "stdout_logfile_maxbytes=20MB\nstdout_logfile_backups=1\n"
            )
        return "\n".join(sections)


def end(pid: int, process: subprocess.Popen[bytes] | None = None) -> None:
    """End a supervisord and with it every program: SIGTERM, and SIGKILL to what is left at the end."""
    children = _descendants(pid)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while time.monotonic() < deadline:
        if process is not None:
            process.poll()
        if not _alive(pid):
            break
        time.sleep(0.05)
    for left in (pid, *children):
        with contextlib.suppress(ProcessLookupError):
            os.kill(left, signal.SIGKILL)
    if process is not None:
        process.wait()


def running_pid(home: Path) -> int | None:
    """The pid of a supervisord that an earlier quickstart left running in `home`, or None."""
    try:
        pid = int((home / "supervisord.pid").read_text())
    except (OSError, ValueError):
        return None
    return pid if _is_supervisord(pid) else None


def _is_supervisord(pid: int) -> bool:
    command = subprocess.run(["ps", "-o", "command=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return "supervisor.supervisord" in command.stdout


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _descendants(pid: int) -> list[int]:
    """All processes below `pid`, from one `ps`, which Linux and macOS both have."""
    listing = subprocess.run(["ps", "-axo", "pid=,ppid="], capture_output=True, text=True, check=False).stdout
    children: dict[int, list[int]] = {}
    for line in listing.splitlines():
        child, parent = (int(word) for word in line.split())
        children.setdefault(parent, []).append(child)
    found: list[int] = []
    waiting = [pid]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def _socket_path(home: Path) -> Path:
    path = home / "supervisord.sock"
    if len(str(path).encode()) <= LONGEST_SOCKET_PATH:
        return path
    digest = hashlib.sha256(str(home).encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"gpu-cluster-{os.getuid()}-{digest}.sock"


def _escaped(value: str | Path) -> str:
    """supervisord expands `%(name)s` in its configuration. Raises ProcessError for what it cannot quote."""
    text = str(value)
    if '"' in text or "\n" in text or ";" in text:
        raise ProcessError(f"{text!r} holds a quote, semicolon or line break, which supervisord cannot take. Move it.")
    return text.replace("%", "%%")
