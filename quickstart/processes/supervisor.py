"""Process management with supervisord: start one by one, restart after a crash, stop together."""

import hashlib
import http.client
import os
import subprocess
import sys
import tempfile
import time
import xmlrpc.client
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from supervisor.xmlrpc import Faults, SupervisorTransport

from kit.web.server import EXIT_CONFIG
from quickstart import QuickstartError
from quickstart.options import ROOT
from quickstart.plan import Program
from quickstart.processes.session import STOP_TIMEOUT_S, config_file, end_session, pid_file

START_TIMEOUT_S = 15
# Uptime after which supervisord considers a program started.
STARTED_AFTER_S = 2
# A program that crashes this often during the start will not recover, for example for lack of memory.
MAX_CRASHES = 3
GROUP = "cluster"
MAX_SOCKET_PATH = 100  # sockaddr_un holds 108 bytes on Linux and 104 on macOS


class ProcessError(QuickstartError):
    """A process could not be started or has failed; the message has the reason and its log."""


class Supervisor:
    """supervisord in its own session, so that Ctrl-C reaches only us and we stop it in order.

    Use as a context manager: the exit always stops every process.
    """

    def __init__(
        self,
        home: Path,
        programs: Iterable[Program],
        *,
        started_after_s: int = STARTED_AFTER_S,
        stop_timeout_s: float = STOP_TIMEOUT_S,
    ) -> None:
        self._started_after_s = started_after_s
        self._stop_timeout_s = stop_timeout_s
        self._programs = {program.name: program for program in programs}
        self.logs = home / "logs"
        self._pid_file = pid_file(home)
        self._config = config_file(home)
        self._socket = _socket_path(home)
        self._process: subprocess.Popen[bytes] | None = None
        self._pids: dict[str, int] = {}
        self._crashes: Counter[str] = Counter()
        self._transport = SupervisorTransport(None, None, serverurl=f"unix://{self._socket}")
        self._rpc = xmlrpc.client.ServerProxy("http://127.0.0.1", transport=self._transport)

    def __enter__(self) -> "Supervisor":
        """Start supervisord without programs. Raises ProcessError."""
        self.logs.mkdir(parents=True, exist_ok=True)
        for program in self._programs:
            (self.logs / f"{program}.log").write_bytes(b"")
        self._config.write_text(self._configuration())
        command = [sys.executable, "-m", "supervisor.supervisord", "--nodaemon", "-c", str(self._config)]
        log = self.logs / "supervisord.log"
        log.write_bytes(b"")
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
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
        """Start one program; `/health` shows when it is ready. Raises QuickstartError if supervisord has ended."""
        self._call("startProcess", f"{GROUP}:{name}", False)

    def check(self, *, starting: bool = False) -> None:
        """Raise ProcessError if a program has failed: invalid configuration or repeated crashes.

        While the cluster is `starting`, MAX_CRASHES crashes in total are enough. Raises QuickstartError if supervisord
        has ended.
        """
        for info in self._call("getAllProcessInfo"):
            name, pid = str(info["name"]), int(info["pid"])
            if info["statename"] == "FATAL" or (info["statename"] == "EXITED" and info["exitstatus"] != 0):
                raise ProcessError(self._log_tail(name, "has stopped"))
            if pid:
                self._crashes[name] += self._pids.setdefault(name, pid) != pid
                self._pids[name] = pid
            if starting and self._crashes[name] >= MAX_CRASHES:
                raise ProcessError(self._log_tail(name, f"has crashed {MAX_CRASHES} times (out of memory?)"))

    def _call(self, method: str, *arguments: Any) -> Any:
        try:
            return getattr(self._rpc.supervisor, method)(*arguments)
        except (OSError, http.client.HTTPException, xmlrpc.client.Fault) as error:
            if isinstance(error, xmlrpc.client.Fault) and error.faultCode != Faults.SHUTDOWN_STATE:
                raise
            self._transport.close()
            raise QuickstartError(
                "The process manager was stopped by scripts/quickstart.sh --stop, or killed; all programs have been "
                f"stopped. Its log is {self.logs / 'supervisord.log'}. Start again with: scripts/quickstart.sh"
            ) from error

    def stop(self) -> None:
        """Stop every program (SIGTERM, later SIGKILL) and supervisord, and wait for their exit."""
        if self._process is None:
            return
        self._transport.close()
        end_session(self._process.pid, self._process, self._stop_timeout_s)
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

    def _log_tail(self, name: str, problem: str) -> str:
        log = self.logs / f"{name}.log"
        try:
            lines = log.read_text(errors="replace").splitlines()[-12:]
        except OSError as error:
            return f"{name} {problem}, and its log {log} cannot be read: {error.strerror}."
        return f"{name} {problem}. The end of its log, {log}:\n\n" + "\n".join(f"  {line}" for line in lines)

    def _configuration(self) -> str:
        sections = [
            f"[supervisord]\nnodaemon=true\nlogfile={os.devnull}\nlogfile_maxbytes=0\nloglevel=warn\n"
            f"pidfile={_escaped(self._pid_file)}\n",
            f"[unix_http_server]\nfile={_escaped(self._socket)}\nchmod=0600\n",
            "[rpcinterface:supervisor]\n"
            "supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface\n",
        ]
        # Programs of one group are stopped in parallel; groups in sequence, a second each.
        sections.append(f"[group:{GROUP}]\nprograms={','.join(self._programs)}\n")
        for program in self._programs.values():
            environment = ",".join(f'{key}="{_escaped(value)}"' for key, value in program.environment.items())
            command = " ".join(f'"{_escaped(part)}"' for part in program.command)
            sections.append(
                f"[program:{program.name}]\ncommand={command}\ndirectory={_escaped(ROOT)}\n"
                f"environment={environment}\nautostart=false\nautorestart=unexpected\n"
                # No restart after a configuration error or if the port is in use.
                f"exitcodes=0,{EXIT_CONFIG}\n"
                f"startsecs={self._started_after_s}\nstartretries=1\nstopsignal=TERM\nstopwaitsecs=15\nstopasgroup=true\nkillasgroup=true\n"
                f"redirect_stderr=true\nstdout_logfile={_escaped(self.logs / program.name)}.log\n"
                "stdout_logfile_maxbytes=20MB\nstdout_logfile_backups=1\n"
            )
        return "\n".join(sections)


def _socket_path(home: Path) -> Path:
    path = home / "supervisord.sock"
    if len(str(path).encode()) <= MAX_SOCKET_PATH:
        return path
    digest = hashlib.sha256(str(home).encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"gpu-cluster-{os.getuid()}-{digest}.sock"


def _escaped(value: str | Path) -> str:
    """Escape a value for supervisord's configuration, which expands `%(name)s`. Raises ProcessError."""
    text = str(value)
    if '"' in text or "\n" in text or ";" in text:
        raise ProcessError(
            f"{text!r} contains a quote, semicolon or line break, which supervisord does not support. Rename it."
        )
    return text.replace("%", "%%")
