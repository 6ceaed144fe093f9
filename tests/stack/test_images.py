"""The images of this checkout on a real engine: contents and hardening."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kit.version import __version__
from tests.stack.root_scan import scan
from tests.support import models
from tests.support.programs.docker import Container, DockerError, build, docker, inspect, running

pytestmark = [pytest.mark.stack, pytest.mark.timeout(3600)]

ROOT = Path(__file__).resolve().parents[2]
BASE = "python:3.11-slim-bookworm"
GATEWAY_MB = 150
LOADED_S = 300.0
STOPPED_S = 30.0
# As the compose files run them, and with no network at all.
CLOSED = (
    "--read-only",
    "--tmpfs=/tmp",
    "--cap-drop=ALL",
    "--security-opt=no-new-privileges",
    "--network=none",
)
# A service that waits for its model: an empty volume, and no registry.
FETCHING = (*CLOSED, "--volume=/models", "--env=REGISTRY_URL=http://127.0.0.1:9")
CHAT = (
    '{"messages": [{"role": "user", "content": "What is the capital of Japan?"}], "max_tokens": 16, "temperature": 0}'
)


@dataclass(frozen=True)
class Image:
    """One image: its target in deploy/Dockerfile, its program, and for a model service a model and a request."""

    name: str
    program: str
    options: tuple[str, ...] = ()
    model: str | None = None
    ask: tuple[str, str, str] | None = None


IMAGES = [
    # Without keys it starts only if its port is published on loopback.
    Image("gateway", "gateway", ("--env=CLUSTER_BIND=127.0.0.1",)),
    Image("registry", "registry", ("--env=STORE=file:/tmp/store",)),
    Image(
        "embedding",
        "services.embedding",
        model="minilm",
        ask=("/v1/embeddings", '{"input": "Hello world"}', '"embedding":[-0.0'),
    ),
    Image("transcription", "services.transcription", model="whisper"),
    Image(
        "llm-cpu",
        "services.llm",
        model="smollm2",
        ask=("/v1/chat/completions", CHAT, "Tokyo"),
    ),
]
# The edge has no model, catalogue or settings, so only some tests apply to it.
EDGE = Image("edge", "edge")
SERVICES = [image for image in IMAGES if image.model]
each = pytest.mark.parametrize("image", IMAGES, ids=lambda image: image.name)


@functools.cache
def built(image: Image) -> str:
    """The image's tag; builds it the first time."""
    return build(f"gpu-cluster-test/{image.name}:test", image.name)


def config(image: Image) -> dict[str, Any]:
    found: dict[str, Any] = inspect(built(image))["Config"]
    return found


def with_model(image: Image) -> tuple[str, ...]:
    """The options that let a service load its model from a folder."""
    assert image.model
    return (f"--volume={models.folder(image.model)}:/model:ro", "--env=MODEL_DIR=/model")


def ask(container: Container, image: Image) -> str:
    """POST to the service from inside its container, which has no network; returns the response's body."""
    assert image.ask
    path, body, _ = image.ask
    program = (
        "import os, sys, urllib.request as u;"
        "url = 'http://127.0.0.1:' + os.environ['PORT'] + sys.argv[1];"
        "r = u.Request(url, sys.argv[2].encode(), {'Content-Type': 'application/json'});"
        "print(u.urlopen(r, timeout=120).read().decode())"
    )
    return container.exec("python", "-c", program, path, body)


@each
def test_image_metadata(image: Image) -> None:
    settings = config(image)
    assert settings["User"] == "10001:10001"
    assert settings["Entrypoint"] == ["python", "-m", image.program]
    assert settings["StopSignal"] == "SIGTERM"
    assert settings["WorkingDir"] == "/app"
    assert settings["Healthcheck"]["Test"] == ["CMD", "python", "-m", "kit.tools.healthcheck"]
    assert {"HOST=0.0.0.0", "HOME=/tmp", "CATALOGUE=/app/models.yaml"} <= set(settings["Env"])
    labels = {name.removeprefix("org.opencontainers.image."): value for name, value in settings["Labels"].items()}
    assert labels["version"] == __version__
    assert labels["licenses"] == "Apache-2.0"
    assert {"title", "description"} <= set(labels)


def test_edge_runs_unprivileged() -> None:
    """Its ports are above 1023."""
    settings = config(EDGE)
    assert settings["User"] == "10001:10001"
    assert settings["Entrypoint"] == ["python", "-m", "edge"]
    assert settings["Healthcheck"]["Test"] == ["CMD", "python", "-m", "kit.tools.healthcheck"]


@pytest.mark.parametrize("image", [*IMAGES, EDGE], ids=lambda image: image.name)
def test_image_contains_only_runtime_files(image: Image) -> None:
    """No installer, compiler, cache, test or secret; only the intended folders are writable."""
    assert scan(built(image)) == {}


def test_scan_finds_unwanted_files_in_the_base_image() -> None:
    assert "installer" in scan(BASE)


@each
def test_image_contains_only_its_program_and_kit(image: Image) -> None:
    listing = docker("run", "--rm", "--entrypoint=python", built(image), "-c", "import os; print(*os.listdir('/app'))")
    package = image.program.partition(".")[0]
    # chatui runs in the gateway's image.
    more = {"chatui", "chatui.env"} if package == "gateway" else set()
    assert set(listing.split()) == {"LICENSE", "models.yaml", "kit", package} | more


def test_gateway_image_is_small() -> None:
    (gateway,) = (image for image in IMAGES if image.name == "gateway")
    over_mb = (inspect(built(gateway))["Size"] - inspect(BASE)["Size"]) / 2**20
    assert over_mb <= GATEWAY_MB


@each
def test_container_runs_hardened(image: Image) -> None:
    """Read-only, no capabilities, no network: it becomes healthy, responds, and stops on SIGTERM."""
    options = (*CLOSED, *image.options, *(with_model(image) if image.model else ()))
    with running(built(image), *options) as container:
        container.until(lambda: container.health == "healthy", "healthy", LOADED_S)
        assert container.probes[-1] == "healthy"
        if image.ask:
            assert image.ask[2] in ask(container, image)
        assert container.stop(STOPPED_S) in (0, 143)


@pytest.mark.parametrize("image", SERVICES, ids=lambda image: image.name)
def test_health_check_reports_why_a_service_waits(image: Image) -> None:
    with running(built(image), *FETCHING) as container:
        container.until(lambda: any("waiting" in one for one in container.probes), "a probe", 60)
        assert container.health == "starting"
        assert container.probes[-1].startswith("loading 0 %: waiting: ")
        assert container.stop(STOPPED_S) in (0, 143)


def test_service_becomes_unhealthy_after_the_start_period() -> None:
    hasty = ("--health-start-period=1s", "--health-interval=1s", "--health-retries=2")
    with running(built(SERVICES[0]), *FETCHING, *hasty) as container:
        container.until(lambda: container.health == "unhealthy", "unhealthy", 60)
        assert "loading 0 %" in container.probes[-1]


@pytest.mark.parametrize("name", ["embedding", "transcription"])
def test_unknown_device_fails_the_build(name: str) -> None:
    with pytest.raises(DockerError, match=r"Unknown DEVICE=tpu\. Build with DEVICE=cpu or DEVICE=cuda"):
        build(f"gpu-cluster-test/{name}:never", name, DEVICE="tpu")
