"""The containers' health check: printed line and exit code for every kind of response."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kit.tools.healthcheck import MAX_BYTES, check

ROOT = Path(__file__).resolve().parents[3]
LOADING = b'{"status": "loading", "progress": 0.428, "detail": "fetching\\nmodel.safetensors 42 % of 269 MB"}'


@contextmanager
def serving(*parts: bytes) -> Iterator[str]:
    """Serve one connection, with `parts` as the response; yields the port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                requests.append(connection.recv(65536))
                for part in parts:
                    connection.sendall(part)

        requests: list[bytes] = []
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield str(listener.getsockname()[1])
        thread.join(10)
        assert requests[0].startswith(b"GET /health HTTP/1.0\r\n")


@pytest.mark.parametrize(
    ("status", "body", "healthy", "line"),
    [
        (b"200 OK", b'{"status": "healthy"}', True, "healthy"),
        (b"503 Service Unavailable", LOADING, False, "loading 42 %: fetching model.safetensors 42 % of 269 MB"),
        (
            b"503 Service Unavailable",
            b'{"status": "failed", "progress": 0.5, "detail": "no room"}',
            False,
            "failed 50 %: no room",
        ),
        # the registry's, without progress
        (
            b"503 Service Unavailable",
            b'{"status": "failed", "detail": "no S3 server"}',
            False,
            "failed: no S3 server",
        ),
        (b"200 OK", b"", True, "HTTP status 200"),
        (b"404 Not Found", b'["something else"]', False, "HTTP status 404"),
        (b"503 Service Unavailable", b'{"status": "loading", "progress": null}', False, "HTTP status 503"),
    ],
)
def test_response_becomes_one_line(status: bytes, body: bytes, healthy: bool, line: str) -> None:
    with serving(b"HTTP/1.1 " + status + b"\r\nContent-Type: application/json\r\n\r\n", body) as port:
        assert check(port, 5) == (healthy, line)


def test_long_detail_is_truncated() -> None:
    """Docker keeps 4096 bytes of a probe's output."""
    with serving(b'HTTP/1.1 503 x\r\n\r\n{"status": "failed", "detail": "', b"long " * 1000, b'"}') as port:
        healthy, line = check(port, 5)
    assert not healthy
    assert len(line) == 400


def test_response_that_is_not_http_is_unhealthy() -> None:
    with serving(b"220 mail.example.org\r\n") as port:
        assert check(port, 5)[0] is False


def test_response_size_is_limited() -> None:
    with serving(b"HTTP/1.1 200 OK\r\n\r\n", b"x" * MAX_BYTES) as port:
        assert check(port, 5) == (True, "HTTP status 200")


def test_timeout_and_closed_port_are_distinguished() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = str(silent.getsockname()[1])
        assert check(port, 0.05) == (False, f"no response on port {port} within 0.05 s")
    assert check(port, 5) == (False, f"cannot connect to port {port}: Connection refused")


@pytest.mark.parametrize("port", ["", "http"])
def test_invalid_port_is_named(port: str) -> None:
    healthy, line = check(port, 5)
    assert not healthy
    assert "Set PORT" in line


def test_program_prints_one_line_and_exits_by_health() -> None:
    """In a Python without packages: exit code 0 for healthy, else 1."""
    with serving(b'HTTP/1.1 200 OK\r\n\r\n{"status": "healthy"}') as port:
        good = run(port)
    assert (good.returncode, good.stdout, good.stderr) == (0, "healthy\n", "")
    bad = run(port)
    assert (bad.returncode, bad.stdout, bad.stderr) == (1, f"cannot connect to port {port}: Connection refused\n", "")


def run(port: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-S", "-m", "kit.tools.healthcheck"],
        cwd=ROOT,
        env=os.environ | {"PORT": port},
        capture_output=True,
        text=True,
        check=False,
    )
