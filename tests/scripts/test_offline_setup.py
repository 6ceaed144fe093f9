"""scripts/offline-setup.sh against a fake Docker: its calls and its error messages."""

import signal
from pathlib import Path

import pytest

from tests.scripts.conftest import Host
from tests.support.hub import wait_until

SCRIPT = "offline-setup.sh"


def mirror_calls(host: Host) -> list[str]:
    return [call for call in host.calls if "-m registry mirror" in call]


def test_complete_setup(host: Host) -> None:
    """Builds, pulls missing images, starts minio and registry from the online file, mirrors, prints the next steps."""
    host.responses.append(("^image inspect minio:1", 1, "", "No such image"))
    code, said = host.run(SCRIPT)
    assert code == 0, said
    calls = host.calls
    cluster = "compose -f docker-compose.gpu-cluster.yml"
    assert f"{cluster} build --quiet registry" in calls
    assert f"{cluster} build --quiet llm-primary" in calls
    assert sum(" build " in call for call in calls) == 2
    assert [call for call in calls if call.startswith("pull")] == ["pull --quiet minio:1"]
    assert "compose up --detach --wait --wait-timeout 300 minio registry" in calls
    assert mirror_calls(host) == ["compose exec -T registry python -m registry mirror"]
    assert "switched off, not fetched: mongo" in said
    assert said.endswith("   docker compose -f docker-compose.gpu-cluster.yml up -d\n")
    assert "\x1b" not in said


def test_options_are_passed_to_the_registry(host: Host) -> None:
    """Names, aliases, --jobs in both spellings, --no-verify; --skip-images touches no image."""
    code, said = host.run(SCRIPT, "qwen", "--jobs", "3", "embedding", "--no-verify", "--skip-images")
    assert code == 0, said
    assert mirror_calls(host) == [
        "compose exec -T registry python -m registry mirror --jobs 3 --no-verify qwen embedding"
    ]
    assert not [call for call in host.calls if " build " in call or call.startswith("pull")]
    host.run(SCRIPT, "--jobs=4", "--skip-images")
    assert mirror_calls(host)[-1].endswith("mirror --jobs 4")


def test_cluster_override_is_used_with_the_cluster_file_only(host: Host) -> None:
    host.environment["CLUSTER_OVERRIDE"] = "site.yml"
    assert host.run(SCRIPT)[0] == 0
    assert "compose -f docker-compose.gpu-cluster.yml -f site.yml build --quiet registry" in host.calls
    assert not [call for call in host.calls if "site.yml" in call and "up --detach" in call]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--jbos", "2"], "There is no option --jbos."),
        (["--jobs"], "--jobs needs a number from 1, not ''."),
        (["--jobs", "0"], "--jobs needs a number from 1, not '0'."),
        (["--jobs=x"], "--jobs needs a number from 1, not 'x'."),
        (["qwen", "qwem"], "Unknown model qwem."),
    ],
)
def test_wrong_arguments_exit_2(host: Host, arguments: list[str], says: str) -> None:
    """Before anything is done."""
    code, said = host.run(SCRIPT, *arguments)
    assert code == 2
    assert says in said
    assert not [call for call in host.calls if " up " in call or " build " in call]


def test_unknown_model_lists_the_catalogue(host: Host) -> None:
    assert "models.yaml: qwen minilm\n" in host.run(SCRIPT, "qwem")[1]


def test_help_needs_no_docker(host: Host) -> None:
    (host.home / "bin" / "docker").unlink()
    code, said = host.run(SCRIPT, "--help")
    assert code == 0
    for word in ("--jobs N", "--skip-images", "--no-verify", "69 Docker cannot be used"):
        assert word in said


def test_missing_docker_exits_69(host: Host) -> None:
    (host.home / "bin" / "docker").unlink()
    code, said = host.run(SCRIPT)
    assert code == 69
    assert "the program docker is not installed" in said
    assert "https://docs.docker.com/engine/install/" in said


@pytest.mark.parametrize(
    ("response", "says"),
    [
        (("^version", 1, "", "Cannot connect to the Docker daemon at unix:///x.sock."), "systemctl start docker"),
        (("^version", 1, "", "permission denied while trying to connect"), "usermod -aG docker"),
        (("^version", 0, "24.0.7\n", ""), "engine 24.0.7 is older than 28.0"),
        (("^compose version", 1, "", "docker: 'compose' is not a docker command."), "docker-compose-plugin"),
        (("^compose version", 0, "v2.20.0-desktop.1\n", ""), "Compose v2.20.0-desktop.1 is older than 2.24.4"),
        (("cluster.yml config --quiet", 1, "", "service x: no such file"), "gpu-cluster.yml: service x: no such file"),
    ],
)
def test_unusable_docker_exits_69(host: Host, response: tuple[str, int, str, str], says: str) -> None:
    """With the fix, before anything is done."""
    host.responses.append(response)
    code, said = host.run(SCRIPT)
    assert code == 69
    assert says in said
    assert not [call for call in host.calls if " up " in call or " build " in call]


def test_disk_is_checked_before_the_images(host: Host) -> None:
    """Images that are present need no space."""
    host.free(20)
    host.responses.append(("registry sizes", 0, "qwen\t9\t0\n", ""))
    assert host.run(SCRIPT)[0] == 0
    host.responses.append(("^image inspect", 1, "", "No such image"))
    code, said = host.run(SCRIPT)
    assert code == 1
    assert "Not enough disk space: 20.4 GB free in Docker's data folder, 40.0 GB needed for the images." in said
    assert "docker image prune" in said


def test_disk_is_checked_before_the_models(host: Host) -> None:
    """Twice the missing bytes that the registry reports, else an estimate."""
    host.free(40)
    code, said = host.run(SCRIPT)
    assert (code, "45.0 GB needed for the models, by estimate" in said) == (1, True)
    host.responses.append(("registry sizes", 0, "qwen\t9\t1000000000\nminilm\t?\t?\tis gated\n", ""))
    assert host.run(SCRIPT)[0] == 0
    host.responses.insert(0, ("registry sizes", 0, "qwen\t9\t30000000000\n", ""))
    code, said = host.run(SCRIPT)
    assert code == 1
    assert "65.0 GB needed for the models (in the store and in the services' cache)" in said
    assert len(mirror_calls(host)) == 1


def test_missing_gpu_is_a_warning(host: Host) -> None:
    code, said = host.run(SCRIPT)
    assert (code, "nvidia-smi is not installed" in said) == (0, True)
    host.gpus(2)
    assert "NVIDIA: 2 GPUs" in host.run(SCRIPT)[1]


def test_failed_pull_exits_1(host: Host) -> None:
    """Names the image and how to transfer it; models are fetched all the same."""
    host.responses += [("^image inspect minio:1", 1, "", "No such image"), ("^pull", 1, "", "no route to host")]
    code, said = host.run(SCRIPT)
    assert code == 1
    assert "minio:1 could not be pulled. On a machine that has it: docker save minio:1 | gzip > image.tar.gz" in said
    assert len(mirror_calls(host)) == 1


def test_failed_build_exits_1(host: Host) -> None:
    """The registry's own image is needed for everything else."""
    host.responses.append(("build --quiet llm-primary", 1, "", "failed to solve"))
    code, said = host.run(SCRIPT)
    assert (code, len(mirror_calls(host))) == (1, 1)
    assert "gpu-cluster/llm:1 could not be built." in said
    host.responses.insert(0, ("build --quiet registry", 1, "", "failed to solve"))
    code, said = host.run(SCRIPT)
    assert (code, len(mirror_calls(host))) == (1, 1)
    assert "The registry's image could not be built." in said


def test_failed_models_exit_1(host: Host) -> None:
    """With the command that resumes."""
    host.responses.append(("registry mirror", 1, "two FAILED\n", ""))
    code, said = host.run(SCRIPT, "qwen")
    assert code == 1
    assert "Some models failed; the table says why." in said
    assert "run the same command again: scripts/offline-setup.sh qwen" in said


def test_killed_registry_is_restarted_and_resumed(host: Host) -> None:
    """Also if its exit status looks like a result but the container has changed."""
    host.responses.append(("registry mirror", [137, 69, 0], "", ""))
    code, said = host.run(SCRIPT)
    assert code == 0, said
    assert len(mirror_calls(host)) == 3
    assert "The registry or minio went away (exit 137). Resuming (1 of 10)." in said
    host.responses[-1] = ("registry mirror", 1, "", "")
    host.responses.append(("^inspect .*State.Running", 0, "down\n", ""))
    code, said = host.run(SCRIPT)
    assert code == 69
    assert "The registry or minio went away 10 times." in said


def test_unhealthy_registry_exits_69(host: Host) -> None:
    """With the end of its log, after several tries."""
    host.program("sleep", "#!/bin/sh\n")
    host.responses += [
        ("up --detach", 1, "", "container registry is unhealthy"),
        ("logs .*minio registry", 0, "registry: STORE is wrong\n", ""),
    ]
    code, said = host.run(SCRIPT)
    assert code == 69
    assert "registry: STORE is wrong" in said
    assert sum("up --detach" in call for call in host.calls) == 6


def test_running_cluster_is_switched_to_the_online_file(host: Host) -> None:
    """A warning; edge is stopped, so that its ports are free."""
    files = "/srv/docker-compose.gpu-cluster.yml\n"
    host.responses.append(("^inspect .*config_files", 0, files, ""))
    code, said = host.run(SCRIPT)
    assert code == 0, said
    assert "The cluster is running, and its registry has no egress" in said
    stop = host.calls.index("compose -f docker-compose.gpu-cluster.yml stop edge")
    assert stop < host.calls.index("compose up --detach --wait --wait-timeout 300 minio registry")


def test_compose_file_without_internet_access_is_rejected(host: Host) -> None:
    host.environment["COMPOSE_FILE"] = "docker-compose.gpu-cluster.yml"
    host.responses.append(("-m kit.tools.compose_plan", 0, "image\tminio:1\tpull\tminio\n", ""))
    code, said = host.run(SCRIPT)
    assert code == 1
    assert "The registry of docker-compose.gpu-cluster.yml has no access to the internet." in said


def test_changed_catalogue_restarts_the_registry(host: Host) -> None:
    host.responses += [
        ("^inspect .*Mounts", 0, f"{host.home / 'models.yaml'}\n", ""),
        ("^inspect .*{{.State.StartedAt}} c0ffee", 0, "2099-01-01T00:00:00Z\n", ""),
    ]
    assert host.run(SCRIPT)[0] == 0
    assert "compose restart registry" not in host.calls
    host.responses[-1] = ("^inspect .*{{.State.StartedAt}} c0ffee", 0, "2020-01-01T00:00:00Z\n", "")
    assert host.run(SCRIPT)[0] == 0
    assert "compose restart registry" in host.calls


def test_hub_token_is_read_from_a_file(host: Host, tmp_path: Path) -> None:
    host.program("docker", '#!/bin/sh\necho "token $HF_TOKEN"; exit 1\n')
    (tmp_path / "token").write_text("hf_abc\n")
    host.environment["HF_TOKEN_FILE"] = str(tmp_path / "token")
    assert "token hf_abc" in host.run(SCRIPT)[1]
    host.environment["HF_TOKEN_FILE"] = "/nowhere"
    code, said = host.run(SCRIPT)
    assert (code, "HF_TOKEN_FILE=/nowhere cannot be read." in said) == (2, True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_ends_at_once(host: Host, number: signal.Signals) -> None:
    """Exit 130 with the command that resumes; nothing is stopped or removed."""
    docker = (host.home / "bin" / "docker").read_text()
    building = 'case "$*" in *" build "*) echo >"$FAKE_DOCKER/began"; exec sleep 600 ;; esac\nexec '
    host.program("docker", docker.replace("exec ", building))
    process = host.start(SCRIPT, "qwen", "--jobs", "2")
    wait_until((host.home / "began").exists)
    process.send_signal(number)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "To resume, run the same command again: scripts/offline-setup.sh qwen --jobs 2" in said
    assert not [call for call in host.calls if " down" in call or " rm" in call or " stop" in call]
