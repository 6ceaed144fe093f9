"""Processes under a real supervisord: started, restarted, given up, ended, and found again."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from quickstart import preflight
from quickstart.plan import Program
from quickstart.processes import session
from quickstart.processes import supervisor as supervisor_module
from quickstart.processes.session import running_session, stop_left_over
from quickstart.processes.supervisor import ManagerError, ProcessError, Supervisor

DEADLINE_S = 30


class Script(Program):
    """A program that runs a line of Python instead of a module."""

    @property
    def command(self) -> list[str]:
        return [*super().command[:1], "-c", self.module]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def child_of(supervisor: Supervisor) -> int:
    """Wait for supervisord's one child and return its pid."""
    manager = manager_of(supervisor)
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        children = [pid for pid in session.members(manager) if pid != manager]
        if children:
            return children[0]
        time.sleep(0.02)
    raise AssertionError("no child was started")


def manager_of(supervisor: Supervisor) -> int:
    assert supervisor._process is not None
    return supervisor._process.pid


def wait_gone(pid: int) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while (Path("/proc") / str(pid)).exists():
        assert time.monotonic() < deadline, f"{pid} still runs"
        time.sleep(0.02)


def wait_until_running(supervisor: Supervisor, name: str) -> None:
    """Wait until supervisord counts the program as started."""
    deadline = time.monotonic() + DEADLINE_S
    while supervisor._ask("getProcessInfo", f"{supervisor_module.GROUP}:{name}")["statename"] != "RUNNING":
        assert time.monotonic() < deadline, f"{name} did not start"
        time.sleep(0.02)


def wait_until_restarted(supervisor: Supervisor, name: str) -> None:
    """Wait until supervisord has seen the death: a new process is there, or on its way."""
    before = supervisor._pids[name]
    deadline = time.monotonic() + DEADLINE_S
    while supervisor._ask("getProcessInfo", f"{supervisor_module.GROUP}:{name}")["pid"] in (0, before):
        assert time.monotonic() < deadline, f"{name} was not started again"
        time.sleep(0.02)


SLEEP = "__import__('time').sleep(300)"


def test_exit_stops_every_process(tmp_path: Path) -> None:
    """After the block no process is left, nor the files that would make the next start believe otherwise."""
    with Supervisor(tmp_path, [Script("one", SLEEP, 1)]) as supervisor:
        supervisor.start("one")
        pid = child_of(supervisor)
        assert running_session(tmp_path) is not None
    wait_gone(pid)
    assert running_session(tmp_path) is None


def test_process_that_ignores_sigterm_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that hangs does not keep the cluster alive."""
    stubborn = (
        "import signal,time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('deaf', flush=True)\ntime.sleep(300)"
    )
    script = tmp_path / "stubborn.py"
    script.write_text(stubborn)
    monkeypatch.setattr(session, "STOP_TIMEOUT_S", 1)
    with Supervisor(tmp_path, [Script("one", f"exec(open('{script}').read())", 1)]) as supervisor:
        supervisor.start("one")
        pid = child_of(supervisor)
        log = tmp_path / "logs" / "one.log"
        deadline = time.monotonic() + DEADLINE_S
        while "deaf" not in log.read_text():
            assert time.monotonic() < deadline
            time.sleep(0.02)
    wait_gone(pid)


def test_killed_process_is_restarted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """kill -9 of a program brings a new one."""
    monkeypatch.setattr(supervisor_module, "COUNTS_AFTER_S", 0)
    with Supervisor(tmp_path, [Script("one", SLEEP, 1)]) as supervisor:
        supervisor.start("one")
        first = child_of(supervisor)
        wait_until_running(supervisor, "one")
        os.kill(first, signal.SIGKILL)
        wait_gone(first)
        assert child_of(supervisor) != first


def test_configuration_error_is_reported_with_the_log(tmp_path: Path) -> None:
    """Exit code 78 is not tried again; the message holds the end of the program's log."""
    with Supervisor(tmp_path, [Script("one", "raise SystemExit(print('PORT is wrong') or 78)", 1)]) as supervisor:
        supervisor.start("one")
        deadline = time.monotonic() + DEADLINE_S
        message = ""
        while not message and time.monotonic() < deadline:
            try:
                supervisor.check()
            except ProcessError as error:
                message = str(error)
            time.sleep(0.05)
    assert "one has stopped" in message
    assert "PORT is wrong" in message


def test_left_over_cluster_is_stopped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A supervisord whose starter was killed is refused by the next start and ended by --stop."""
    with Supervisor(tmp_path, [Script("one", SLEEP, 1)]) as supervisor:
        supervisor.start("one")
        pid = child_of(supervisor)
        with pytest.raises(preflight.PreflightError, match=r"running already .* --stop"):
            preflight.check(tmp_path, [])
        stop_left_over(tmp_path)
        wait_gone(pid)
        assert "Stopped the cluster" in capsys.readouterr().out
        assert running_session(tmp_path) is None
        with pytest.raises(ManagerError, match="--stop"):
            supervisor.check()


def test_exit_stops_programs_of_a_killed_manager(tmp_path: Path) -> None:
    """kill -9 of supervisord: one clear message, and leaving ends the programs that it can end no more."""
    with Supervisor(tmp_path, [Script("one", SLEEP, 1)]) as supervisor:
        supervisor.start("one")
        pid = child_of(supervisor)
        os.kill(manager_of(supervisor), signal.SIGKILL)
        with pytest.raises(ManagerError, match="killed"):
            supervisor.check()
    wait_gone(pid)


def test_stop_finds_programs_of_a_killed_manager(tmp_path: Path) -> None:
    """supervisord and its starter killed: the next start does not stumble over taken ports, --stop ends the rest."""
    with Supervisor(tmp_path, [Script("one", SLEEP, 1)]) as supervisor:
        supervisor.start("one")
        pid, manager = child_of(supervisor), manager_of(supervisor)
        os.kill(manager, signal.SIGKILL)
        with pytest.raises(preflight.PreflightError, match=f"pid {manager}"):
            preflight.check(tmp_path, [])
        stop_left_over(tmp_path)
        wait_gone(pid)


def test_reused_pid_of_another_process_is_not_stopped(tmp_path: Path) -> None:
    """A pid file from before a restart of the machine may name a stranger, which --stop must not end."""
    program = f"print(flush=True) or {SLEEP}"
    stranger = subprocess.Popen([sys.executable, "-c", program], start_new_session=True, stdout=subprocess.PIPE)
    try:
        assert stranger.stdout is not None
        with stranger.stdout as out:
            out.readline()  # it has begun, and so has a command line
        session.pid_file(tmp_path).write_text(str(stranger.pid))
        assert running_session(tmp_path) is None
        stop_left_over(tmp_path)
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_program_that_crashes_repeatedly_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model for which memory is too short is killed each time it loads: that ends in a message, not in a wait."""
    monkeypatch.setattr(supervisor_module, "COUNTS_AFTER_S", 0)
    with Supervisor(tmp_path, [Script("one", SLEEP, 1)]) as supervisor:
        supervisor.start("one")
        for _ in range(supervisor_module.MAX_DEATHS):
            wait_until_running(supervisor, "one")
            supervisor.check(starting=True)
            os.kill(child_of(supervisor), signal.SIGKILL)
            wait_until_restarted(supervisor, "one")
        with pytest.raises(ProcessError, match=r"one has died 3 times .* The end of its log"):
            supervisor.check(starting=True)
        supervisor.check()


def test_ports_in_use_are_reported_with_the_remedy(tmp_path: Path) -> None:
    """Every taken port is listed with its program, and --port-offset is offered."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(preflight.PreflightError) as caught:
            preflight.check(tmp_path, [Program("gateway", "gateway", port)])
    assert f"{port} (gateway)" in str(caught.value)
    assert "--port-offset" in str(caught.value)


def test_long_path_gets_a_short_socket_path(tmp_path: Path) -> None:
    """A clone in a deep folder works though a Unix socket's path is short."""
    deep = tmp_path / ("d" * 60) / ("e" * 60)
    deep.mkdir(parents=True)
    with Supervisor(deep, [Script("one", SLEEP, 1)]) as supervisor:
        supervisor.check()


@pytest.mark.parametrize("value", ['a"b', "a;b", "a\nb"])
def test_values_that_supervisord_cannot_quote_are_rejected(value: str) -> None:
    """Rather than a wrong command line, a clear message."""
    with pytest.raises(ProcessError, match="holds a quote"):
        supervisor_module._escaped(value)


def test_percent_signs_are_escaped() -> None:
    """supervisord would expand `%`."""
    assert supervisor_module._escaped("50%") == "50%%"
