"""scripts/offline-setup.sh against a fake Docker: what it asks for, and what it says when something is wrong."""

import signal
from pathlib import Path

import pytest

from tests.scripts.conftest import Host
from tests.support.hub import wait_until

SCRIPT = "offline-setup.sh"


def mirror_calls(host: Host) -> list[str]:
    return [call for call in host.calls if "-m registry mirror" in call]


def test_everything(host: Host) -> None:
    """Builds, pulls what is not here, starts minio and registry from the online file, mirrors, tells what is next."""
    host.answers.append(("^image inspect minio:1", 1, "", "No such image"))
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


def test_options_reach_the_registry(host: Host) -> None:
    """Names, also aliases, --jobs in both spellings, --no-verify; --skip-images touches no image."""
    code, said = host.run(SCRIPT, "qwen", "--jobs", "3", "embedding", "--no-verify", "--skip-images")
    assert code == 0, said
    assert mirror_calls(host) == [
        "compose exec -T registry python -m registry mirror --jobs 3 --no-verify qwen embedding"
    ]
    assert not [call for call in host.calls if " build " in call or call.startswith("pull")]
    host.run(SCRIPT, "--jobs=4", "--skip-images")
    assert mirror_calls(host)[-1].endswith("mirror --jobs 4")


def test_an_override_of_the_site_is_used(host: Host) -> None:
    """CLUSTER_OVERRIDE goes with the cluster's file, and with that only."""
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
def test_wrong_arguments(host: Host, arguments: list[str], says: str) -> None:
    """Exit 2, before anything is done."""
    code, said = host.run(SCRIPT, *arguments)
    assert code == 2
    assert says in said
    assert not [call for call in host.calls if " up " in call or " build " in call]


def test_an_unknown_name_lists_the_names(host: Host) -> None:
    """Those of the catalogue that compose mounts."""
    assert "models.yaml: qwen minilm\n" in host.run(SCRIPT, "qwem")[1]


def test_help(host: Host) -> None:
    """All options and exit codes, without Docker."""
    (host.home / "bin" / "docker").unlink()
    code, said = host.run(SCRIPT, "--help")
    assert code == 0
    for word in ("--jobs N", "--skip-images", "--no-verify", "69 Docker cannot be used"):
        assert word in said


def test_no_docker(host: Host) -> None:
    """Where to get it."""
    (host.home / "bin" / "docker").unlink()
    code, said = host.run(SCRIPT)
    assert code == 69
    assert "the program docker is not installed" in said
    assert "https://docs.docker.com/engine/install/" in said


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (("^version", 1, "", "Cannot connect to the Docker daemon at unix:///x.sock."), "systemctl start docker"),
        (("^version", 1, "", "permission denied while trying to connect"), "usermod -aG docker"),
        (("^version", 0, "24.0.7\n", ""), "engine 24.0.7 is older than 28.0"),
        (("^compose version", 1, "", "docker: 'compose' is not a docker command."), "docker-compose-plugin"),
        (("^compose version", 0, "v2.20.0-desktop.1\n", ""), "Compose v2.20.0-desktop.1 is older than 2.24.4"),
        (("cluster.yml config --quiet", 1, "", "service x: no such file"), "gpu-cluster.yml: service x: no such file"),
    ],
)
def test_docker_that_cannot_be_used(host: Host, answer: tuple[str, int, str, str], says: str) -> None:
    """Exit 69 and what to do, before anything is done."""
    host.answers.append(answer)
    code, said = host.run(SCRIPT)
    assert code == 69
    assert says in said
    assert not [call for call in host.calls if " up " in call or " build " in call]


def test_a_disk_without_room_for_the_images(host: Host) -> None:
    """Told before they are built; images that are here need no room."""
    host.free(20)
    host.answers.append(("registry sizes", 0, "qwen\t9\t0\n", ""))
    assert host.run(SCRIPT)[0] == 0
    host.answers.append(("^image inspect", 1, "", "No such image"))
    code, said = host.run(SCRIPT)
    assert code == 1
    assert "Not enough disk space: 20.4 GB free in Docker's data folder, 40.0 GB needed for the images." in said
    assert "docker image prune" in said


def test_a_disk_without_room_for_the_models(host: Host) -> None:
    """What the registry says is missing, twice, before it is fetched; an estimate where it cannot say."""
    host.free(40)
    code, said = host.run(SCRIPT)
    assert (code, "45.0 GB needed for the models, by estimate" in said) == (1, True)
    host.answers.append(("registry sizes", 0, "qwen\t9\t1000000000\nminilm\t?\t?\tis gated\n", ""))
    assert host.run(SCRIPT)[0] == 0
    host.answers.insert(0, ("registry sizes", 0, "qwen\t9\t30000000000\n", ""))
    code, said = host.run(SCRIPT)
    assert code == 1
    assert "65.0 GB needed for the models (in the store and in the services' cache)" in said
    assert len(mirror_calls(host)) == 1


def test_no_gpu_is_a_warning(host: Host) -> None:
    """The machine that prepares may have none; what the cluster needs is said."""
    code, said = host.run(SCRIPT)
    assert (code, "nvidia-smi is not installed" in said) == (0, True)
    host.gpus(2)
    assert "NVIDIA: 2 GPUs" in host.run(SCRIPT)[1]


def test_an_image_that_cannot_be_pulled(host: Host) -> None:
    """Which one, and how to bring it by hand; the models are fetched all the same; exit 1."""
    host.answers += [("^image inspect minio:1", 1, "", "No such image"), ("^pull", 1, "", "no route to host")]
    code, said = host.run(SCRIPT)
    assert code == 1
    assert "minio:1 could not be pulled. On a machine that has it: docker save minio:1 | gzip > image.tar.gz" in said
    assert len(mirror_calls(host)) == 1


def test_an_image_that_cannot_be_built(host: Host) -> None:
    """Named at the end again; the registry's own is needed for everything else."""
    host.answers.append(("build --quiet llm-primary", 1, "", "failed to solve"))
    code, said = host.run(SCRIPT)
    assert (code, len(mirror_calls(host))) == (1, 1)
    assert "gpu-cluster/llm:1 could not be built." in said
    host.answers.insert(0, ("build --quiet registry", 1, "", "failed to solve"))
    code, said = host.run(SCRIPT)
    assert (code, len(mirror_calls(host))) == (1, 1)
    assert "The registry's image could not be built." in said


def test_models_that_failed(host: Host) -> None:
    """The registry's exit 1 is this one's, with the command that goes on."""
    host.answers.append(("registry mirror", 1, "two FAILED\n", ""))
    code, said = host.run(SCRIPT, "qwen")
    assert code == 1
    assert "Some models failed; the table says why." in said
    assert "run the same command again: scripts/offline-setup.sh qwen" in said


def test_a_registry_that_is_killed_at_work(host: Host) -> None:
    """Started again and gone on with, also when its exit code looks like a verdict but the container is another."""
    host.answers.append(("registry mirror", [137, 69, 0], "", ""))
    code, said = host.run(SCRIPT)
    assert code == 0, said
    assert len(mirror_calls(host)) == 3
    assert "The registry or minio went away (exit 137). Resuming (1 of 10)." in said
    host.answers[-1] = ("registry mirror", 1, "", "")
    host.answers.append(("^inspect .*State.Running", 0, "down\n", ""))
    code, said = host.run(SCRIPT)
    assert code == 69
    assert "The registry or minio went away 10 times." in said


def test_a_registry_that_does_not_get_healthy(host: Host) -> None:
    """Exit 69 with its last words, after a few tries."""
    host.program("sleep", "#!/bin/sh\n")
    host.answers += [
        ("up --detach", 1, "", "container registry is unhealthy"),
        ("logs .*minio registry", 0, "registry: STORE is wrong\n", ""),
    ]
    code, said = host.run(SCRIPT)
    assert code == 69
    assert "registry: STORE is wrong" in said
    assert sum("up --detach" in call for call in host.calls) == 6


def test_a_cluster_that_is_up(host: Host) -> None:
    """Its registry has no way out: told, the door's ports freed, and started from the online file."""
    files = "/srv/docker-compose.gpu-cluster.yml\n"
    host.answers.append(("^inspect .*config_files", 0, files, ""))
    code, said = host.run(SCRIPT)
    assert code == 0, said
    assert "The cluster is running, and its registry has no egress" in said
    stop = host.calls.index("compose -f docker-compose.gpu-cluster.yml stop edge")
    assert stop < host.calls.index("compose up --detach --wait --wait-timeout 300 minio registry")


def test_a_compose_file_without_a_way_out(host: Host) -> None:
    """COMPOSE_FILE names the cluster's: nothing could be fetched, so that is said."""
    host.environment["COMPOSE_FILE"] = "docker-compose.gpu-cluster.yml"
    host.answers.append(("-m kit.tools.compose_plan", 0, "image\tminio:1\tpull\tminio\n", ""))
    code, said = host.run(SCRIPT)
    assert code == 1
    assert "The registry of docker-compose.gpu-cluster.yml has no access to the internet." in said


def test_a_changed_catalogue_is_read_again(host: Host) -> None:
    """models.yaml is newer than the registry's start: it is restarted, else not."""
    host.answers += [
        ("^inspect .*Mounts", 0, f"{host.home / 'models.yaml'}\n", ""),
        ("^inspect .*{{.State.StartedAt}} c0ffee", 0, "2099-01-01T00:00:00Z\n", ""),
    ]
    assert host.run(SCRIPT)[0] == 0
    assert "compose restart registry" not in host.calls
    host.answers[-1] = ("^inspect .*{{.State.StartedAt}} c0ffee", 0, "2020-01-01T00:00:00Z\n", "")
    assert host.run(SCRIPT)[0] == 0
    assert "compose restart registry" in host.calls


def test_the_hub_token_may_stand_in_a_file(host: Host, tmp_path: Path) -> None:
    """HF_TOKEN_FILE is read for Compose; one that cannot be read is said."""
    host.program("docker", '#!/bin/sh\necho "token $HF_TOKEN"; exit 1\n')
    (tmp_path / "token").write_text("hf_abc\n")
    host.environment["HF_TOKEN_FILE"] = str(tmp_path / "token")
    assert "token hf_abc" in host.run(SCRIPT)[1]
    host.environment["HF_TOKEN_FILE"] = "/nowhere"
    code, said = host.run(SCRIPT)
    assert (code, "HF_TOKEN_FILE=/nowhere cannot be read." in said) == (2, True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(host: Host, number: signal.Signals) -> None:
    """At once, though docker would go on; nothing is stopped or removed; what to do is said; exit 130."""
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
