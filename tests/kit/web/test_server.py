"""Start and stop: messages of failed starts, signals."""

import errno
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from fastapi import FastAPI

from kit.config.settings import SettingsError
from kit.service.service import ServiceSettings
from kit.web import server
from kit.web.app import HttpSettings
from kit.web.server import EXIT_CONFIG, listen, run

ROOT = Path(__file__).resolve().parents[3]
WITHIN_S = 20

PROGRAM = """
from fastapi import Request
from pydantic import Field
from kit.web.app import HttpSettings, create_app
from kit.web.guard import KeyRing
from kit.web.metrics import HttpMetrics
from kit.web.server import run

class AnyPort(HttpSettings):
    port: int = Field(0, description="0, so that the kernel chooses")
    service_name: str = Field("t-secondary", description="as the gateway and the logs show it")

def make(settings):
    app = create_app(title="t", settings=settings, metrics=HttpMetrics("t"), keys=KeyRing([], variable="K"))
    @app.get("/peer")
    async def peer(request: Request):
        return {"peer": request.client.host}
    return app

import kit.web.server
listen = kit.web.server.listen
def report(*args):
    listener = listen(*args)
    print(listener.getsockname()[1], flush=True)
    return listener
kit.web.server.listen = report
run("t", AnyPort, make)
print("returned", flush=True)
"""


@pytest.fixture
def program() -> Iterator[subprocess.Popen[str]]:
    """A program of the cluster in a process of its own, as its user starts it."""
    environment = {k: v for k, v in os.environ.items() if k.lower() not in HttpSettings.model_fields}
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        cwd=ROOT,
        env=environment | {"FORWARDED_ALLOW_IPS": "*"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    yield process
    process.kill()
    process.communicate()


def until_started(process: subprocess.Popen[str]) -> int:
    """Wait until it listens and serves; returns its port."""
    assert process.stdout is not None
    assert process.stderr is not None
    port = int(process.stdout.readline())
    for line in process.stderr:
        if "startup complete" in line:
            return port
    raise AssertionError("it ended before it served")


@pytest.mark.parametrize(("sign", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, -signal.SIGTERM)])
def test_signals_stop_without_traceback(program: subprocess.Popen[str], sign: signal.Signals, code: int) -> None:
    """SIGINT and SIGTERM."""
    until_started(program)
    program.send_signal(sign)
    out, err = program.communicate(timeout=WITHIN_S)
    assert program.returncode == code
    assert "Traceback" not in err
    assert ("returned" in out) is (sign is signal.SIGINT)


def test_forwarded_address_is_trusted_from_loopback_only(program: subprocess.Popen[str]) -> None:
    """FORWARDED_ALLOW_IPS changes nothing."""
    port = until_started(program)
    peer = httpx2.get(f"http://127.0.0.1:{port}/peer", headers={"X-Forwarded-For": "127.0.0.1, 203.0.113.9"})
    assert peer.json() == {"peer": "203.0.113.9"}
    program.send_signal(signal.SIGTERM)
    program.wait(WITHIN_S)


def test_programs_limit_connections_and_ignore_upgrades(program: subprocess.Popen[str]) -> None:
    """As in test_client_connection.py."""
    port = until_started(program)
    upgrade = {"Connection": "Upgrade", "Upgrade": "h2c"}
    assert httpx2.get(f"http://127.0.0.1:{port}/peer", headers=upgrade).json() == {"peer": "127.0.0.1"}
    too_large = httpx2.get(f"http://127.0.0.1:{port}/peer", headers={"X-A": "a" * 70_000})
    assert (too_large.status_code, too_large.json()["error"]["code"]) == (431, "request_head_too_large")
    program.send_signal(signal.SIGTERM)
    program.wait(WITHIN_S)


def said(capsys: pytest.CaptureFixture[str], caught: pytest.ExceptionInfo[SystemExit]) -> str:
    """Check the exit code; returns the one line on stderr."""
    assert caught.value.code == EXIT_CONFIG == os.EX_CONFIG
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize("listening", [True, False])
def test_port_in_use(capsys: pytest.CaptureFixture[str], listening: bool) -> None:
    """Also while its owner does not accept yet."""
    with socket.create_server(("127.0.0.1", 0)) if listening else listen("first", "127.0.0.1", 0) as owner:
        port = owner.getsockname()[1]
        with pytest.raises(SystemExit) as caught:
            listen("gateway", "127.0.0.1", port)
    line = said(capsys, caught)
    assert line == f"gateway: port {port} on 127.0.0.1 is in use. Stop that program, or set PORT to another port."


def test_port_is_free_after_a_restart() -> None:
    """Connections in TIME_WAIT do not block it."""
    with listen("one", "127.0.0.1", 0) as owner:
        port = owner.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            accepted = owner.accept()[0]
            accepted.close()
    with listen("two", "127.0.0.1", port) as again:
        assert again.getsockname()[1] == port


@pytest.mark.parametrize(("port", "says"), [(80, "needs root privileges"), (8080, "Check HOST and PORT")])
def test_privileged_port(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], port: int, says: str
) -> None:

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(socket.socket, "bind", refuse)
    with pytest.raises(SystemExit) as caught:
        listen("gateway", "127.0.0.1", port)
    assert says in said(capsys, caught)


@pytest.mark.parametrize("host", ["no-such-host.invalid", "203.0.113.1", "2001:db8::1", "1.2.3.4.5", "ü" * 64, "a..b"])
def test_invalid_host_names_the_variable(capsys: pytest.CaptureFixture[str], host: str) -> None:
    with pytest.raises(SystemExit) as caught:
        listen("gateway", host, 18080)
    line = said(capsys, caught)
    assert line.startswith(f"gateway: cannot listen on {host}:18080: ")
    assert "HOST" in line


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "localhost", "::1", "::"])
def test_ipv4_ipv6_and_names(host: str) -> None:
    if ":" in host and not socket.has_dualstack_ipv6():
        pytest.skip("this machine has no IPv6")
    with listen("gateway", host, 0) as listener:
        assert listener.getsockname()[1] > 0


def test_invalid_setting_exits_with_its_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PORT", "99999")
    with pytest.raises(SystemExit) as caught:
        run("gateway", HttpSettings, lambda _: FastAPI())
    line = said(capsys, caught)
    assert line.startswith("gateway: PORT is '99999': ")
    assert line.endswith("Expected: the port to listen on, 1 to 65535.")


def test_settings_error_of_the_application_exits(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PORT", "18080")
    monkeypatch.setattr(server, "configure_logs", lambda *_, **__: None)

    def make(_: HttpSettings) -> FastAPI:
        raise SettingsError("MODEL=x is not in models.yaml.")

    with pytest.raises(SystemExit) as caught:
        run("llm", HttpSettings, make)
    assert said(capsys, caught) == "llm: MODEL=x is not in models.yaml."


def test_open_files_limit_is_raised() -> None:
    """From a soft limit of 256."""
    program = (
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (256, 2048)); "
        "from kit.web.server import raise_open_files_limit; raise_open_files_limit(); "
        "print(resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "(2048, 2048)"


@pytest.mark.parametrize(("settings", "shown"), [(HttpSettings, "llm"), (ServiceSettings, "multimodal")])
def test_service_name_in_logs_and_messages(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], settings: type[HttpSettings], shown: str
) -> None:
    named: list[str] = []
    monkeypatch.setattr(server, "configure_logs", lambda name, **_: named.append(name))
    monkeypatch.setenv("SERVICE_NAME", "multimodal")
    monkeypatch.setenv("MODEL", "llava")
    with socket.create_server(("127.0.0.1", 0)) as owner:
        monkeypatch.setenv("PORT", str(owner.getsockname()[1]))
        with pytest.raises(SystemExit) as caught:
            run("llm", settings, lambda _: FastAPI())
    assert said(capsys, caught).startswith(f"{shown}: port ")
    assert named == [shown]
