"""The log of real programs on a terminal, as far as clients write it."""

import os
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest

from tests.gateway.programs import ROOT, free_port

WITHIN_S = 30


@pytest.mark.parametrize("program", ["gateway", "registry"])
def test_request_path_cannot_control_the_terminal(tmp_path: Path, program: str) -> None:
    """Its control characters are escaped, line ends included."""
    port, log = free_port(), tmp_path / "log"
    settings = {"LOG_FORMAT": "console", "SERVICES": "a=http://127.0.0.1:9", "STORE": f"file:{tmp_path}"}
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", program], cwd=ROOT, env={**os.environ, **settings, "PORT": str(port)}, stderr=stream
        )
    try:
        transport = httpx2.HTTPTransport(retries=10)
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", transport=transport, timeout=WITHIN_S) as http:
            assert http.get("/nowhere/%1B]0;title%07/%C2%9B8m/%0Aforged%0D").status_code == 404
    finally:
        process.terminate()
        process.wait(WITHIN_S)
    text = log.read_text(encoding="utf-8")
    assert r"path=/nowhere/\x1b]0;title\x07/\x9b8m/\nforged\r" in text
    assert [char for char in text if not char.isprintable() and char != "\n"] == []
