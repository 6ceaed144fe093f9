"""scripts/doctor.sh against a fake Docker: the checks and their reports."""

import json
import re
import socket

import pytest

from tests.scripts.conftest import DockerResponse, Host

SCRIPT = "doctor.sh"
FINDINGS: list[DockerResponse] = [
    ("registry check$", 0, "ok\tclock\t2026-11-25 12:00 UTC\t\nok\tmodel qwen\t10 files\t\n", ""),
    ("kit.tools.check_model$", 0, "ok\tmodel qwen\tevery digest verified\t\n", ""),
    ("kit.tools.egress$", 0, "ok\tegress\tno egress: TCP\t\n", ""),
]


@pytest.fixture
def ready(host: Host) -> Host:
    """A machine that lacks nothing."""
    host.gpus(2)
    host.responses += FINDINGS
    return host


def put_first(host: Host, *response: object) -> None:
    host.responses.insert(0, response)  # type: ignore[arg-type]  # built from the test's parameters


def test_ready_machine(ready: Host) -> None:
    """Exit 0, one line per check; registry started from the cluster's file, models checked without GPU."""
    code, said = ready.run(SCRIPT)
    assert code == 0, said
    assert said.endswith(
        "Ready. Disconnect from the internet and start: docker compose -f docker-compose.gpu-cluster.yml up -d\n"
    )
    lines = said.splitlines()[:-2]
    assert all(line.startswith("ok ") for line in lines)
    checks = [re.split(r"\s{2,}", line)[1] for line in lines]
    assert checks == [
        *("docker", "compose", "images", "disk", "nvidia", "ports", "secrets", "registry"),
        *("clock", "model qwen", "model qwen", "egress llm-primary"),
    ]
    cluster = "compose -f docker-compose.gpu-cluster.yml"
    assert f"{cluster} up --detach --wait --wait-timeout 300 minio registry" in ready.calls
    (tried,) = [call for call in ready.calls if call.endswith("-m kit.tools.check_model")]
    assert re.search(r"-f \S+/no-gpu.yml run --rm --no-deps -T .*--entrypoint python llm-primary ", tried)
    assert "\x1b" not in said


def test_json_output(ready: Host) -> None:
    """Valid JSON whatever characters the findings contain."""
    put_first(ready, "kit.tools.egress$", 1, 'problem\tegress\tTCP to "x" \\ got out\tUse the\x01 file.\n', "")
    code, said = ready.run(SCRIPT, "--json")
    assert code == 1
    document = json.loads(said)
    assert document["ready"] is False
    assert document["checks"][0] == {"status": "ok", "check": "docker", "detail": "engine 28.5.2", "mend": ""}
    assert document["checks"][-1] == {
        "status": "problem",
        "check": "egress llm-primary",
        "detail": 'TCP to "x" \\ got out',
        "mend": "Use the  file.",
    }
    put_first(ready, *FINDINGS[2])
    assert json.loads(ready.run(SCRIPT, "--json")[1])["ready"] is True


@pytest.mark.parametrize(
    ("response", "says", "fix"),
    [
        (("^version", 1, "", "Cannot connect to the Docker daemon"), "docker  ", "systemctl start docker"),
        (("^compose version", 0, "2.3.0\n", ""), "Compose 2.3.0 is older than 2.24.4", "docker-compose-plugin"),
        (("^image inspect", 1, "", ""), "the registry's image is missing: gpu-cluster/registry:1", "offline-setup.sh"),
        (("^image inspect minio", 1, "", ""), "missing: minio:1", "docker save and docker load"),
        (("^volume inspect", 1, "", ""), "the volume gpu-cluster_secrets does not exist", "offline-setup.sh"),
        (
            ("kit.tools.compose_plan", 1, "", "No module named kit.tools.compose_plan"),
            "No module named",
            "of another version",
        ),
        (
            ("kit.tools.check_model", 1, "", "Traceback\nboom"),
            "the check failed: Traceback boom",
            "of another version",
        ),
        (
            ("kit.tools.check_model", 1, "problem\tmodel qwen\tdoes not load\tCheck models.yaml.\n", ""),
            "does not load",
            "Check models.yaml.",
        ),
        (("registry check", 1, "problem\tclock\tit is 1970\tSet it.\n", ""), "it is 1970", "Set it."),
        (("Runtimes", 0, "runc \n", ""), "cannot pass them to containers", "nvidia-ctk runtime configure"),
    ],
)
def test_problem_is_reported_with_its_fix(ready: Host, response: DockerResponse, says: str, fix: str) -> None:
    """Exit 1; the problem in one line, its fix below."""
    put_first(ready, *response)
    code, said = ready.run(SCRIPT)
    assert code == 1, said
    lines = said.splitlines()
    number = next(number for number, line in enumerate(lines) if line.startswith("problem") and says in line)
    assert fix in lines[number + 1]
    assert said.splitlines()[-1].startswith("Not ready: ")


def test_missing_docker_ends_the_checks(host: Host) -> None:
    (host.home / "bin" / "docker").unlink()
    code, said = host.run(SCRIPT)
    assert code == 1
    assert "the program docker is not installed" in said
    assert "Not ready: 1 to fix." in said


def test_full_disk_is_reported(ready: Host) -> None:
    ready.free(2)
    code, said = ready.run(SCRIPT)
    assert (code, "2.0 GB free in Docker's data folder, 5.0 GB needed" in said) == (1, True)


def test_missing_gpu_is_reported(ready: Host) -> None:
    """device_ids names GPU 1, the machine has GPU 0 only."""
    ready.responses.clear()
    ready.responses += FINDINGS
    ready.gpus(1)
    code, said = ready.run(SCRIPT)
    assert code == 1
    assert "1 GPUs, but llm-secondary is configured for GPU 1, see nvidia-smi -L" in said
    assert "Change device_ids in docker-compose.gpu-cluster.yml" in said


def test_port_in_use_is_reported(ready: Host) -> None:
    """Unless a container of this project uses it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        plan = f"port\t127.0.0.1\t{port}\tedge\nimage\tx\tpull\tx\n"
        put_first(ready, "kit.tools.compose_plan", 0, plan, "")
        code, said = ready.run(SCRIPT)
        assert (code, f"{port} (edge) is in use by another program" in said) == (1, True)
        put_first(ready, "^ps --filter", 0, "other other-web-1\n", "")
        assert "is in use by the container other-web-1" in ready.run(SCRIPT)[1]
        put_first(ready, "^ps --filter", 0, "gpu-cluster gpu-cluster-edge-1\n", "")
        assert f"all free, or used by this cluster: {port}" in ready.run(SCRIPT)[1]


def test_unhealthy_registry_skips_the_model_checks(ready: Host) -> None:
    ready.program("sleep", "#!/bin/sh\n")
    put_first(ready, "up --detach", 1, "", "container gpu-cluster-minio-1 is unhealthy")
    code, said = ready.run(SCRIPT)
    assert code == 1
    assert "minio and registry do not become healthy: container gpu-cluster-minio-1 is unhealthy" in said
    assert not [call for call in ready.calls if "kit.tools.check_model" in call]


def test_running_online_stack_is_a_warning(ready: Host) -> None:
    """Its registry moves to the isolated network."""
    put_first(ready, "^compose ps --services", 0, "gateway\nminio\nregistry\n", "")
    code, said = ready.run(SCRIPT)
    assert code == 0
    assert "services of docker-compose.yml were running: gateway" in said


def test_wrong_option_exits_2(host: Host) -> None:
    """And --help works without Docker."""
    code, said = host.run(SCRIPT, "--jsn")
    assert (code, "There is no option --jsn." in said, host.calls) == (2, True, [])
    (host.home / "bin" / "docker").unlink()
    code, said = host.run(SCRIPT, "--help")
    assert (code, "--json" in said) == (0, True)
