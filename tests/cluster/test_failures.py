"""Failures of a part of a running cluster."""

import contextlib
import os
import signal
import time
from collections.abc import Iterator

import httpx2
import pytest

from tests.support.programs.cluster import Quickstart

# The gateway's poll interval plus timeout; traffic may detect the failure earlier.
REPORT_S = 6.0
BACK_S = 180.0


def services(cluster: Quickstart) -> dict[str, dict[str, object]]:
    answer: dict[str, dict[str, dict[str, object]]] = httpx2.get(f"{cluster.url(8080)}/services", timeout=10).json()
    return answer["services"]


def embed(cluster: Quickstart) -> httpx2.Response:
    return httpx2.post(f"{cluster.url(8080)}/v1/embeddings", json={"input": "x"}, timeout=60)


@pytest.mark.parametrize(
    ("port", "service"), [(8002, "embedding"), (8000, "llm-primary"), (8003, "multimodal"), (8004, "transcription")]
)
def test_killed_service_is_reported_and_restarted(cluster: Quickstart, port: int, service: str) -> None:
    """Meanwhile other services work, and requests for its model get a 503 that names it."""
    with restarts_suspended(cluster):
        os.kill(cluster.pid_on(port), signal.SIGKILL)
        deadline = time.monotonic() + REPORT_S
        while services(cluster)[service]["healthy"]:
            assert time.monotonic() < deadline, "the gateway did not report the failed service"
            time.sleep(0.05)

        refused = request_model_of(cluster, service)
        assert refused.status_code == 503
        assert service in refused.json()["error"]["message"]
        assert refused.json()["error"]["code"] == "no_healthy_backend"
        assert int(refused.headers["retry-after"]) >= 1

        other = embed(cluster) if service != "embedding" else request_model_of(cluster, "llm-primary")
        assert other.status_code == 200, other.text

    deadline = time.monotonic() + BACK_S
    while not services(cluster)[service]["healthy"]:
        assert time.monotonic() < deadline, "the service was not restarted"
        time.sleep(0.05)
    assert request_model_of(cluster, service).status_code == 200


@contextlib.contextmanager
def restarts_suspended(cluster: Quickstart) -> Iterator[None]:
    """Pause the process manager, which would restart a small model before the checks."""
    manager = int((cluster.home / "supervisord.pid").read_text())
    os.kill(manager, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(manager, signal.SIGCONT)


def request_model_of(cluster: Quickstart, service: str) -> httpx2.Response:
    if service == "embedding":
        return embed(cluster)
    if service == "transcription":
        from tests.cluster.test_openai_client import SPEECH

        files = {"file": ("sentence.wav", SPEECH.read_bytes(), "audio/wav")}
        url = f"{cluster.url(8080)}/v1/audio/transcriptions"
        return httpx2.post(url, files=files, data={"model": "whisper"}, timeout=120)
    model = "llava" if service == "multimodal" else "smollm2"
    body = {"model": model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3}
    return httpx2.post(f"{cluster.url(8080)}/v1/chat/completions", json=body, timeout=120)


def test_services_survive_a_killed_registry(cluster: Quickstart) -> None:
    """It is restarted, and loaded models stay available."""
    os.kill(cluster.pid_on(8090), signal.SIGKILL)
    assert embed(cluster).status_code == 200
    deadline = time.monotonic() + BACK_S
    while cluster.health(8090) != 200:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_torch_is_the_cpu_build() -> None:
    import torch

    assert torch.version.cuda is None
