"""The gateway program: start, serve, survive a killed service, stop."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import pytest

from tests.gateway.programs import ROOT, Programs, free_port
from tests.gateway.running import HANG_S


def test_program_serves_survives_and_stops(programs: Programs) -> None:
    """One of two services is killed under a stream; the stop keeps the grace period."""
    ports = {name: free_port() for name in ("llm-primary", "embedding", "gateway")}
    fake = ("tests.support.backends.openai_backend", "--port")
    llm = programs.start(*fake, str(ports["llm-primary"]), "--model", "qwen", "--rate", "20", until="listening")
    programs.start(*fake, str(ports["embedding"]), "--model", "minilm", "--kind", "embedding", until="listening")
    gateway = programs.start(
        "gateway",
        until="startup complete",
        PORT=str(ports["gateway"]),
        SERVICES=",".join(f"{name}=http://127.0.0.1:{ports[name]}" for name in ("llm-primary", "embedding")),
        CATALOGUE=str(programs.folder / "models.yaml"),
        POLL_INTERVAL="0.3",
    )
    with httpx2.Client(base_url=f"http://127.0.0.1:{ports['gateway']}", trust_env=False, timeout=HANG_S) as http:
        assert http.get("/services").json()["healthy"] == 2
        whole = http.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "What is AI?"}]})
        assert whole.headers["x-served-by"] == "llm-primary"
        assert http.post("/v1/embeddings", json={"input": "Hello world"}).json()["data"]
        with http.stream("POST", "/v1/chat/completions", json={"stream": True}) as answer:
            text = ""
            for piece in answer.iter_text():
                if not text:
                    llm.kill()
                text += piece
        assert '"error"' in text
        # A dying process closes its sockets one by one: until it is gone, its port may still take a connection.
        llm.wait(HANG_S)
        down = http.post("/v1/chat/completions", json={"model": "qwen"})
        assert down.status_code == 503
        assert "llm-primary" in down.json()["error"]["message"]
        assert http.get("/services").json()["services"]["llm-primary"]["healthy"] is False
        assert http.post("/v1/embeddings", json={"input": "Hello world"}).status_code == 200
    gateway.send_signal(signal.SIGTERM)
    assert gateway.wait(HANG_S) in (0, -signal.SIGTERM)


@pytest.mark.parametrize("workers", [1, 2])
def test_sighup_reloads_the_services_file(programs: Programs, workers: int) -> None:
    """In every worker, ending no request."""
    services = programs.folder / "services.yaml"
    services.write_text("one: http://127.0.0.1:1\n")
    port = free_port()
    gateway = programs.start(
        "gateway",
        until="startup complete",
        PORT=str(port),
        WORKERS=str(workers),
        SERVICES_FILE=str(services),
        CATALOGUE=str(programs.folder / "models.yaml"),
        POLL_INTERVAL="300",
    )
    services.write_text("one: http://127.0.0.1:1\ntwo: http://127.0.0.1:2\n")
    deadline = time.monotonic() + HANG_S

    def known() -> list[int]:
        """How many services those workers know of that have eight connections opened at the same time."""
        with contextlib.ExitStack() as stack:
            clients = [
                stack.enter_context(httpx2.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=HANG_S))
                for _ in range(8)
            ]
            return [client.get("/services").json()["total"] for client in clients]

    gateway.send_signal(signal.SIGHUP)
    while known() != [2] * 8:
        assert time.monotonic() < deadline
        # Again: one worker may not have been up yet.
        gateway.send_signal(signal.SIGHUP)
    assert gateway.poll() is None
    gateway.send_signal(signal.SIGTERM)
    assert gateway.wait(HANG_S) == -signal.SIGTERM


def test_invalid_setting_exits_78_with_one_line(tmp_path: Path) -> None:
    program = subprocess.run(
        [sys.executable, "-m", "gateway"],
        cwd=ROOT,
        env={**os.environ, "SERVICES": "nonsense"},
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )
    assert program.returncode == 78
    assert "SERVICES is 'nonsense'" in program.stderr
    assert "Traceback" not in program.stderr
