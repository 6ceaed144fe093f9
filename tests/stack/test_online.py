"""`docker compose up` on a fresh clone: models are mirrored on first use, requests succeed, faults are survived."""

import json
import os
import re
import signal
import time
from pathlib import Path

import pytest

from tests.stack import sample_requests
from tests.stack.hub import Hub
from tests.stack.stack import PROJECT, Stack
from tests.support.programs.docker import docker, pid_of
from tests.support.quick_reference import curl_commands, statements

# Two polls of the gateway, and the time to resolve a name.
ONE_POLL_S = 10.0
SERVICES = ("llm-primary", "embedding", "transcription")
# Commands for the cluster file only.
OTHER_COMMANDS = ("localhost:8001", "gpu-cluster.yml", "offline-setup", "nvidia-smi", "docker stats")


@pytest.fixture(scope="module", autouse=True)
def online(clean: Stack, internet: Hub) -> Stack:
    """The stack started by the one command of the README, without .env."""
    internet.start()
    assert not (clean.clone / ".env").exists()
    clean.compose("up --detach --wait")
    return clean


def test_first_up_mirrors_the_models_of_running_services(online: Stack) -> None:
    listed = online.request(8090, "/models")
    assert {model["name"]: model["status"] for model in listed["models"]} == dict.fromkeys(
        ("qwen", "minilm", "whisper"), "ready"
    )
    assert sorted(listed["not_mirrored"]) == ["llava", "tinyllama"]


def test_requests_of_every_kind_succeed(online: Stack) -> None:
    sample_requests.chat()
    sample_requests.embedding()
    sample_requests.transcription()


@pytest.mark.parametrize("command", [one for one in curl_commands() if not any(word in one for word in OTHER_COMMANDS)])
def test_curl_of_the_quick_reference(online: Stack, command: str) -> None:
    """As written, including those that change something."""
    if "DELETE" in command:
        pytest.skip("other tests need the model")
    printed = online.run(command, timeout=300).stdout
    assert printed.strip()
    assert '"error": {' not in printed


@pytest.mark.parametrize(
    "command", [one for one in statements() if one.startswith("docker compose") and "gpu-cluster.yml" not in one]
)
def test_docker_command_of_the_quick_reference(online: Stack, command: str) -> None:
    done = online.run(f"timeout --signal=INT 5 {command}", check=False)
    assert done.returncode in (0, 124, 130), done.stderr
    assert "minio" in done.stdout if command.endswith("ps minio") else "downloading" in done.stdout


def test_hub_client_downloads_from_the_published_object_store(online: Stack) -> None:
    model = online.request(8090, "/models/minilm")
    wanted = next(file for file in model["files"] if file["path"] == "model.safetensors")
    url = f"http://localhost:8090/small/minilm/resolve/{model['commit']}/{wanted['path']}"
    printed = online.run(f"curl -sSL {url} | sha256sum").stdout
    assert printed.split()[0] == wanted["sha256"]


def test_secrets_are_random_and_not_visible(online: Stack) -> None:
    """Neither in a container's configuration nor in a log."""
    password = online.inside("registry", "print(open('/run/cluster/minio_root_password').read())").strip()
    assert re.fullmatch(r"[0-9a-f]{48}", password)
    for container in online.containers():
        assert password not in docker("inspect", container)
    assert password not in online.compose("logs --no-color")


def test_second_replica_is_found_within_one_poll(online: Stack) -> None:
    """With the documented override that drops the published port."""
    files = "-f docker-compose.yml -f docker-compose.override.yml -f deploy/compose/replicas.yml"
    online.run(f"docker compose {files} up --detach --wait --scale embedding=2 embedding")
    online.until(lambda: healthy_replicas(online) == 2, "two replicas", ONE_POLL_S)
    for _ in range(4):
        sample_requests.embedding()
    served = {name: one["requests"] for name, one in online.services().items() if name.startswith("embedding")}
    assert all(served.values()), served
    online.compose("up --detach --wait")
    online.until(lambda: healthy_replicas(online) == 1, "one replica again", ONE_POLL_S)
    sample_requests.embedding()


def healthy_replicas(stack: Stack) -> int:
    """Return the number of healthy replicas of the embedding service."""
    return sum(one["healthy"] for name, one in stack.services().items() if name.startswith("embedding"))


@pytest.mark.parametrize("service", [*SERVICES, "gateway", "registry", "minio"])
def test_killed_service_is_restarted(online: Stack, service: str) -> None:
    before = started(online, service)
    os.kill(pid_of(online.container(service)), signal.SIGKILL)
    online.until(lambda: started(online, service) not in ("", before), f"{service} restarted", 60)
    # Until the gateway marks it unhealthy, a request may fail.
    online.until(sample_requests.succeeds(sample_requests.embedding), "a response")
    online.until_healthy(*SERVICES)


def test_service_out_of_memory_is_restarted(online: Stack) -> None:
    """Other services are not affected."""
    container = online.container("embedding")
    before = started(online, "embedding")
    # Make the kernel's OOM killer prefer the service to the process that allocates more.
    Path(f"/proc/{pid_of(container)}/oom_score_adj").write_text("1000")
    used = float(docker("stats", "--no-stream", "--format={{.MemUsage}}", container).partition("MiB")[0])
    limit = f"{int(used) + 50}m"
    docker("update", "--memory", limit, "--memory-swap", limit, container)
    try:
        docker("exec", container, "python", "-c", "x = b'x' * 200_000_000", check=False)
        online.until(lambda: started(online, "embedding") not in ("", before), "embedding restarted", 60)
        sample_requests.chat()
    finally:
        docker("update", "--memory", "64g", "--memory-swap", "64g", container)
    online.until(sample_requests.succeeds(sample_requests.embedding), "a response")


def started(stack: Stack, service: str) -> str:
    """Return the start time of a service's container; empty if it is not running."""
    state = json.loads(docker("inspect", "--format", "{{json .State}}", stack.container(service)))
    return str(state["StartedAt"]) if state["Running"] else ""


def test_restart_of_the_quick_reference(online: Stack) -> None:
    """The gateway notices it; the model is loaded from the cache."""
    online.compose("restart llm-primary")
    online.until(sample_requests.succeeds(sample_requests.chat), "a response")


def test_down_and_up_need_no_internet(online: Stack, internet: Hub) -> None:
    """`down` removes containers and networks and keeps the volumes."""
    volumes = online.volumes()
    began = time.time()
    online.compose("down")
    assert not online.containers()
    assert not online.networks()
    assert online.volumes() == volumes
    assert {name.removeprefix(f"{PROJECT}_") for name in volumes} >= {"secrets", "minio-data", "model-cache"}
    internet.stop()
    try:
        online.compose("up --detach --wait")
        sample_requests.chat()
        sample_requests.embedding()
        sample_requests.transcription()
        assert "downloading" not in online.compose(f"logs --no-color --since {int(began)} registry")
    finally:
        internet.start()
