"""The GPU cluster after `offline-setup.sh`, without internet: one GPU each, requests succeed, no egress."""

from collections.abc import Iterator

import httpx2
import pytest

from tests.stack import outside, sample_requests
from tests.stack.hub import Hub
from tests.stack.outside import Outside
from tests.stack.stack import Stack
from tests.support.programs.docker import docker, pid_of
from tests.support.quick_reference import curl_commands, statements

GPUS = {"llm-primary": "0", "llm-secondary": "1", "multimodal": "2", "embedding": "3", "transcription": "4"}
PARTS = (*GPUS, "gateway", "registry", "minio", "edge")


@pytest.fixture(scope="module")
def air_gapped(clean: Stack, internet: Hub) -> Iterator[Stack]:
    """Set up with internet; then every container recreated without it, by the command of the quick reference."""
    internet.start()
    clean.run("./scripts/offline-setup.sh", timeout=1800)
    clean.compose("down")
    internet.stop()
    with outside.watched() as watched:
        clean.outside = watched
        with outside.resolver_on_loopback(watched):
            clean.run("docker compose -f docker-compose.gpu-cluster.yml up -d")
        clean.until_healthy(*GPUS)
        yield clean
        clean.compose("down", cluster=True)
    internet.start()


@pytest.fixture
def watched(air_gapped: Stack) -> Outside:
    """The records of egress, cleared."""
    assert air_gapped.outside is not None
    air_gapped.outside.reset()
    return air_gapped.outside


def test_requests_of_every_kind_succeed_offline(air_gapped: Stack) -> None:
    """Both LLMs, embedding, image, transcription, all through the gateway."""
    sample_requests.chat("qwen")
    sample_requests.chat("tinyllama")
    sample_requests.embedding()
    sample_requests.image_question()
    sample_requests.transcription()


@pytest.mark.parametrize(("service", "gpu"), GPUS.items())
def test_each_service_sees_only_its_gpu(air_gapped: Stack, service: str, gpu: str) -> None:
    """Read from the environment of the service's process; within the container it is GPU 0."""
    program = "print(*open('/proc/1/environ').read().split(chr(0)), sep=chr(10))"
    environment = air_gapped.inside(service, program).splitlines()
    given = {line for line in environment if "VISIBLE_DEVICES" in line}
    assert given == {f"NVIDIA_VISIBLE_DEVICES={gpu}", "CUDA_VISIBLE_DEVICES=0"}


def test_probe_detects_egress(air_gapped: Stack, watched: Outside) -> None:
    """From an ordinary network every probe gets out."""
    docker("network", "create", "gpu-cluster-test-open")
    try:
        name = docker("run", "--detach", "--rm", "--network=gpu-cluster-test-open", "--entrypoint=sleep",
                      "gpu-cluster/registry:0.1.0", "300").strip()  # fmt: skip
        assert outside.probe(pid_of(name), "control") >= {"tcp", "udp"}
        assert {line.split()[-1] for line in watched.packets} >= {"6", "17"}
        docker("rm", "--force", name)
    finally:
        docker("network", "rm", "gpu-cluster-test-open")


@pytest.mark.parametrize("service", PARTS)
def test_no_egress(air_gapped: Stack, watched: Outside, service: str) -> None:
    """No TCP, UDP, IPv6 or DNS from any container, and no packet is seen outside."""
    assert outside.probe(pid_of(air_gapped.container(service)), service) == set()
    assert watched.packets == []
    assert watched.names == []


def test_normal_operation_causes_no_egress(air_gapped: Stack, watched: Outside) -> None:
    sample_requests.chat()
    sample_requests.embedding()
    sample_requests.transcription()
    assert watched.packets == []
    assert watched.names == []


@pytest.mark.parametrize("port", [8080, 8090, 8000, 8001, 8002, 8003, 8004])
def test_published_ports_respond(air_gapped: Stack, port: int) -> None:
    """On the ports of the quick reference."""
    assert air_gapped.request(port, "/health")["status"] in ("healthy", "ok")


@pytest.mark.parametrize("port", [9000, 9001])
def test_object_store_ports_speak_http(air_gapped: Stack, port: int) -> None:
    assert httpx2.get(f"http://127.0.0.1:{port}/", trust_env=False).status_code < 500


def test_other_containers_need_the_admin_token(air_gapped: Stack) -> None:
    program = (
        "import urllib.request as u, urllib.error as e\n"
        "for url in ('http://registry:8090', 'http://edge:8090'):\n"
        "    try: print(u.urlopen(u.Request(url + '/models/whisper', method='DELETE'), timeout=3).status)\n"
        "    except e.HTTPError as error: print(error.code)\n"
        "    except OSError: print('closed')"
    )
    assert air_gapped.inside("embedding", program).split() == ["403", "closed"]
    assert air_gapped.request(8090, "/models/whisper")["status"] == "ready"


@pytest.mark.parametrize("command", [one for one in curl_commands() if "DELETE" not in one])
def test_curl_of_the_quick_reference(air_gapped: Stack, command: str) -> None:
    """As written; a download is accepted, and fails later without internet."""
    printed = air_gapped.run(command, timeout=300).stdout
    assert printed.strip()
    assert '"error": {' not in printed


@pytest.mark.parametrize(
    "command",
    [
        one
        for one in statements()
        if one.startswith("docker compose") and not any(word in one for word in (" up ", " down", " restart "))
    ],
)
def test_docker_command_of_the_quick_reference(air_gapped: Stack, command: str) -> None:
    """`ps` and `logs` of either file show the cluster."""
    command = command.replace("[service-name]", "llm-primary")
    done = air_gapped.run(f"timeout --signal=INT 5 {command}", check=False)
    assert done.returncode in (0, 124, 130), done.stderr
    assert done.stdout.strip()


def test_restart_of_the_quick_reference(air_gapped: Stack) -> None:
    """Meanwhile a request for its model gets an error with the reason."""
    air_gapped.run("docker compose -f docker-compose.gpu-cluster.yml restart llm-primary")
    air_gapped.until(sample_requests.succeeds(sample_requests.chat), "a response")


def test_missing_model_names_offline_setup(air_gapped: Stack) -> None:
    """Deleted, and restarted without its cache: 503."""
    air_gapped.run("curl -fsS -X DELETE http://localhost:8090/models/whisper")
    air_gapped.inside(
        "transcription",
        "import shutil, pathlib; [shutil.rmtree(p) for p in pathlib.Path('/models').iterdir() if 'whisper' in str(p)]",
    )
    air_gapped.compose("restart transcription", cluster=True)
    air_gapped.until(lambda: "offline-setup" in health_detail(8004), "the service names offline-setup.sh")
    assert request_missing_model().status_code == 503
    air_gapped.until(lambda: "offline-setup" in request_missing_model().text, "the gateway names it too", 10)
    assert "offline-setup" in air_gapped.compose("logs --no-color transcription", cluster=True)


def health_detail(port: int) -> str:
    """Return the detail of a loading service's health."""
    response = httpx2.get(f"http://127.0.0.1:{port}/health", trust_env=False)
    return str(response.json().get("detail"))


def request_missing_model() -> httpx2.Response:
    """Return the gateway's response to a request for the missing model."""
    files = {"file": b"RIFF"}
    url = f"{sample_requests.GATEWAY}/audio/transcriptions"
    return httpx2.post(url, data={"model": "whisper"}, files=files, trust_env=False)


def test_services_survive_an_object_store_outage(air_gapped: Stack) -> None:
    """Loaded models keep serving; the registry reports the outage and recovers."""
    air_gapped.compose("stop minio", cluster=True)
    sample_requests.chat()
    response = httpx2.get("http://127.0.0.1:8090/health", trust_env=False, timeout=30)
    assert response.status_code == 503
    assert "minio:9000" in response.json()["detail"]
    air_gapped.compose("start minio", cluster=True)
    air_gapped.until(lambda: air_gapped.request(8090, "/health")["status"] == "healthy", "the registry is back", 60)
