"""A container's health check: what it says and how it ends, for every way in which a service may answer."""

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
def answering(*parts: bytes) -> Iterator[str]:
    """A server that sends `parts` to whoever asks first; yields its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                asked.append(connection.recv(65536))
                for part in parts:
                    connection.sendall(part)

        asked: list[bytes] = []
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield str(listener.getsockname()[1])
        thread.join(10)
        assert asked[0].startswith(b"GET /health HTTP/1.0\r\n")


@pytest.mark.parametrize(
    ("status", "body", "well", "line"),
    [
        (b"200 OK", b'{"status": "healthy"}', True, "healthy"),
        (b"503 Service Unavailable", LOADING, False, "loading 42 %: fetching model.safetensors 42 % of 269 MB"),
        (
            b"503 Service Unavailable",
            b'{"status": "failed", "progress": 0.5, "detail": "no room"}',
            False,
            "failed 50 %: no room",
        ),
        # The registry's: no progress.
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
def test_every_answer_becomes_one_line(status: bytes, body: bytes, well: bool, line: str) -> None:
    with answering(b"HTTP/1.1 " + status + b"\r\nContent-Type: application/json\r\n\r\n", body) as port:
        assert check(port, 5) == (well, line)


def test_a_long_reason_is_cut() -> None:
    """Docker keeps 4096 bytes of a probe, and `docker inspect` shows each of them five times."""
    with answering(b'HTTP/1.1 503 x\r\n\r\n{"status": "failed", "detail": "', b"long " * 1000, b'"}') as port:
        well, line = check(port, 5)
    assert not well
    assert len(line) == 400


def test_what_is_no_http_is_not_well() -> None:
    with answering(b"220 mail.example.org\r\n") as port:
        assert check(port, 5)[0] is False


def test_an_answer_without_end_is_given_up() -> None:
    with answering(b"HTTP/1.1 200 OK\r\n\r\n", b"x" * MAX_BYTES) as port:
        assert check(port, 5) == (True, "HTTP status 200")


def test_silence_and_a_closed_port_are_told_apart() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = str(silent.getsockname()[1])
        assert check(port, 0.05) == (False, f"no answer on port {port} within 0.05 s")
    assert check(port, 5) == (False, f"nothing answers on port {port}: Connection refused")


@pytest.mark.parametrize("port", ["", "http"])
def test_a_missing_port_is_named(port: str) -> None:
    well, line = check(port, 5)
    assert not well
    assert "Set PORT" in line


def test_the_program_exits_by_what_it_found() -> None:
    """As Docker runs it, in a Python without any package: one line, 0 for well, 1 for everything else."""
    with answering(b'HTTP/1.1 200 OK\r\n\r\n{"status": "healthy"}') as port:
        good = run(port)
    assert (good.returncode, good.stdout, good.stderr) == (0, "healthy\n", "")
    bad = run(port)
    assert (bad.returncode, bad.stdout, bad.stderr) == (1, f"nothing answers on port {port}: Connection refused\n", "")


def run(port: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-S", "-m", "kit.tools.healthcheck"],
        cwd=ROOT,
        env=os.environ | {"PORT": port},
        capture_output=True,
        text=True,
        check=False,
    )
