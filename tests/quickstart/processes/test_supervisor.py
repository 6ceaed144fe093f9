"""Processes under a real supervisord: start, restart, failure, stop, detection."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from quickstart import QuickstartError, preflight
from quickstart.plan import Program
from quickstart.processes import session
from quickstart.processes import supervisor as supervisor_module
from quickstart.processes.session import running_session, stop_left_over
from quickstart.processes.supervisor import ProcessError, Supervisor

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
    """Wait for supervisord's child and return its pid."""
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
    """Wait until supervisord considers the program started."""
    deadline = time.monotonic() + DEADLINE_S
    while supervisor._call("getProcessInfo", f"{supervisor_module.GROUP}:{name}")["statename"] != "RUNNING":
        assert time.monotonic() < deadline, f"{name} did not start"
        time.sleep(0.02)


def wait_until_restarted(supervisor: Supervisor, name: str) -> None:
    """Wait until supervisord has started a new process."""
    before = supervisor._pids[name]
    deadline = time.monotonic() + DEADLINE_S
    while supervisor._call("getProcessInfo", f"{supervisor_module.GROUP}:{name}")["pid"] in (0, before):
        assert time.monotonic() < deadline, f"{name} was not restarted"
        time.sleep(0.02)


SLEEP = "__import__('time').sleep(300)"


def test_exit_stops_every_process(tmp_path: Path) -> None:
    """Neither processes nor pid files remain."""
    with Supervisor(tmp_path, [Script("one", SLEEP, 1)]) as supervisor:
        supervisor.start("one")
        pid = child_of(supervisor)
        assert running_session(tmp_path) is not None
    wait_gone(pid)
    assert running_session(tmp_path) is None


def test_process_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    stubborn = (
        "import signal,time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('ready', flush=True)\ntime.sleep(300)"
    )
    script = tmp_path / "stubborn.py"
    script.write_text(stubborn)
    stubborn_program = Script("one", f"exec(open('{script}').read())", 1)
    with Supervisor(tmp_path, [stubborn_program], stop_timeout_s=1) as supervisor:
        supervisor.start("one")
        pid = child_of(supervisor)
        log = tmp_path / "logs" / "one.log"
        deadline = time.monotonic() + DEADLINE_S
        while "ready" not in log.read_text():
            assert time.monotonic() < deadline
            time.sleep(0.02)
    wait_gone(pid)


def test_killed_process_is_restarted(tmp_path: Path) -> None:
    with Supervisor(tmp_path, [Script("one", SLEEP, 1)], started_after_s=0) as supervisor:
        supervisor.start("one")
        first = child_of(supervisor)
        wait_until_running(supervisor, "one")
        os.kill(first, signal.SIGKILL)
        wait_gone(first)
        assert child_of(supervisor) != first


def test_configuration_error_is_reported_with_the_log(tmp_path: Path) -> None:
    """Exit code 78 is not retried; the message has the end of the log."""
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
    """The next start detects it, and --stop ends it."""
    with Supervisor(tmp_path, [Script("one", SLEEP, 1)]) as supervisor:
        supervisor.start("one")
        pid = child_of(supervisor)
        with pytest.raises(QuickstartError, match=r"already running .* --stop"):
            preflight.check(tmp_path, [])
        stop_left_over(tmp_path)
        wait_gone(pid)
        assert "Stopped the cluster" in capsys.readouterr().out
        assert running_session(tmp_path) is None
        with pytest.raises(QuickstartError, match="--stop"):
            supervisor.check()


def test_exit_stops_programs_of_a_killed_manager(tmp_path: Path) -> None:
    """With one clear message."""
    with Supervisor(tmp_path, [Script("one", SLEEP, 1)]) as supervisor:
        supervisor.start("one")
        pid = child_of(supervisor)
        os.kill(manager_of(supervisor), signal.SIGKILL)
        with pytest.raises(QuickstartError, match="killed"):
            supervisor.check()
    wait_gone(pid)


def test_stop_finds_programs_of_a_killed_manager(tmp_path: Path) -> None:
    """After supervisord and its starter were killed."""
    with Supervisor(tmp_path, [Script("one", SLEEP, 1)]) as supervisor:
        supervisor.start("one")
        pid, manager = child_of(supervisor), manager_of(supervisor)
        os.kill(manager, signal.SIGKILL)
        with pytest.raises(QuickstartError, match=f"pid {manager}"):
            preflight.check(tmp_path, [])
        stop_left_over(tmp_path)
        wait_gone(pid)


def test_reused_pid_of_another_process_is_not_stopped(tmp_path: Path) -> None:
    """A pid file may be older than a reboot."""
    program = f"print(flush=True) or {SLEEP}"
    other = subprocess.Popen([sys.executable, "-c", program], start_new_session=True, stdout=subprocess.PIPE)
    try:
        assert other.stdout is not None
        with other.stdout as out:
            out.readline()  # it is running and has a command line
        session.pid_file(tmp_path).write_text(str(other.pid))
        assert running_session(tmp_path) is None
        stop_left_over(tmp_path)
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_program_that_crashes_repeatedly_is_reported(tmp_path: Path) -> None:
    """For example if each load runs out of memory."""
    with Supervisor(tmp_path, [Script("one", SLEEP, 1)], started_after_s=0) as supervisor:
        supervisor.start("one")
        for _ in range(supervisor_module.MAX_CRASHES):
            wait_until_running(supervisor, "one")
            supervisor.check(starting=True)
            os.kill(child_of(supervisor), signal.SIGKILL)
            wait_until_restarted(supervisor, "one")
        with pytest.raises(ProcessError, match=r"one has crashed 3 times .* The end of its log"):
            supervisor.check(starting=True)
        supervisor.check()


def test_ports_in_use_are_reported_with_the_remedy(tmp_path: Path) -> None:
    """Each with its program, and a hint at --port-offset."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(QuickstartError) as caught:
            preflight.check(tmp_path, [Program("gateway", "gateway", port)])
    assert f"{port} (gateway)" in str(caught.value)
    assert "--port-offset" in str(caught.value)


def test_long_path_gets_a_short_socket_path(tmp_path: Path) -> None:
    """Paths of Unix sockets are limited to about 100 bytes."""
    deep = tmp_path / ("d" * 60) / ("e" * 60)
    deep.mkdir(parents=True)
    with Supervisor(deep, [Script("one", SLEEP, 1)]) as supervisor:
        supervisor.check()


@pytest.mark.parametrize("value", ['a"b', "a;b", "a\nb"])
def test_values_that_supervisord_cannot_quote_are_rejected(value: str) -> None:
    with pytest.raises(ProcessError, match="contains a quote"):
        supervisor_module._escaped(value)


def test_percent_signs_are_escaped() -> None:
    """supervisord would expand `%`."""
    assert supervisor_module._escaped("50%") == "50%%"
