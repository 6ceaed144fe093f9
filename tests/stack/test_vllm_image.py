"""services/llm on vLLM: its own image if VLLM_IMAGE names it, else a stand-in with the same vLLM for a CPU."""

import functools
import os
import re
from pathlib import Path

import pytest

from tests.stack.test_images import CHAT, CLOSED, Image, ask
from tests.support import models
from tests.support.programs import vllm_cpu
from tests.support.programs.docker import build, docker, inspect, running

pytestmark = [pytest.mark.stack, pytest.mark.timeout(3600)]

ROOT = Path(__file__).resolve().parents[2]
STANDIN = "gpu-cluster-test/vllm-openai"
LOADED_S = 400.0
STOPPED_S = 60.0
MAX_ADDED_MB = 20
LLM = Image("llm-cuda", "services.llm", model="smollm2", ask=("/v1/chat/completions", CHAT, "Tokyo"))


@functools.cache
def base() -> str:
    """The image to build on."""
    if image := os.environ.get("VLLM_IMAGE"):
        return image
    version = vllm_cpu.version()
    dockerfile = "tests/stack/standins/vllm/Dockerfile"
    return build(f"{STANDIN}:v{version}", dockerfile=dockerfile, VLLM_VERSION=version, RELEASED=vllm_cpu.RELEASED)


@functools.cache
def built() -> str:
    return build("gpu-cluster-test/llm:test", LLM.name, VLLM_IMAGE=base())


def test_image_metadata() -> None:
    settings = inspect(built())["Config"]
    assert settings["User"] == "10001:10001"
    assert settings["Entrypoint"] == ["python", "-m", "services.llm"]
    assert {"ENGINE=vllm", "HOME=/tmp", "MODEL_CACHE=/models"} <= set(settings["Env"])


def test_only_missing_packages_are_added() -> None:
    added = docker("run", "--rm", "--entrypoint=ls", built(), "/opt/packages").split()
    locked = re.findall(r"^([a-z0-9-]+)==\S+ \\$", (ROOT / "requirements/llm-vllm.txt").read_text(), re.MULTILINE)
    assert {name for name in added if not name.endswith("-info")} == set(locked)
    assert (inspect(built())["Size"] - inspect(base())["Size"]) / 2**20 <= MAX_ADDED_MB


@pytest.mark.skipif("VLLM_IMAGE" in os.environ, reason="the real image needs a GPU to run on")
def test_container_runs_hardened() -> None:
    """Read-only, no capabilities, no network: vLLM loads a model, responds, and stops on SIGTERM."""
    given = (f"--volume={models.folder('smollm2')}:/model:ro", "--env=MODEL_DIR=/model", "--env=MODEL=tinyllama")
    with running(built(), *CLOSED, "--tmpfs=/tmp:exec", "--shm-size=1g", *given) as container:
        container.until(lambda: container.health == "healthy", "healthy", LOADED_S)
        assert "Tokyo" in ask(container, LLM)
        assert container.stop(STOPPED_S) in (0, 143)
