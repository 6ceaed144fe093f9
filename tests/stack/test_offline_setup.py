"""`offline-setup.sh` interrupted at random points: it resumes, and ends with every digest verified."""

import contextlib
import os
import random
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tests.stack.hub import Hub
from tests.stack.stack import Stack
from tests.support.programs.docker import docker, pid_of

SEED = 20261125
MODELS = {"qwen", "tinyllama", "llava", "minilm", "whisper"}


@pytest.fixture(scope="module", autouse=True)
def fresh(clean: Stack, internet: Hub) -> Stack:
    """An empty stack, and a running Hub."""
    internet.start()
    return clean


@contextlib.contextmanager
def setting_up(stack: Stack) -> Iterator["subprocess.Popen[bytes]"]:
    """Run the script in its own process group, as a terminal does; its log is in the clone."""
    with (stack.clone / "setup.log").open("ab") as log:
        script = subprocess.Popen(
            ["./scripts/offline-setup.sh", "--skip-images"],
            cwd=stack.clone, env=stack.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
        try:
            yield script
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(script.pid, signal.SIGKILL)
            script.wait()


def downloaded_bytes(stack: Stack) -> int:
    """Return the bytes of all models that the registry has; 0 while it does not respond."""
    try:
        models = stack.request(8090, "/models")["models"]
    except httpx2.HTTPError:
        return 0
    return sum(model["progress"]["bytes_done"] for model in models)


def total_bytes(stack: Stack) -> int:
    """Return the bytes of all models, from the Hub's manifests."""
    program = (
        "import json, pathlib\n"
        "found = pathlib.Path('/store/models').rglob('commits/*.json')\n"
        "print(sum(sum(file['size'] for file in json.loads(one.read_text())['files']) for one in found))"
    )
    return int(docker("exec", "gpu-cluster-test-hub", "python", "-c", program))


def test_interrupted_setup_resumes(fresh: Stack) -> None:
    """kill -9, Ctrl-C and a killed registry, at five random points."""
    chance = random.Random(SEED)
    total = total_bytes(fresh)
    points = sorted(chance.uniform(0.02, 0.9) for _ in range(5))
    # Ctrl-C comes first, so that the script is still running.
    faults = ["Ctrl-C", "kill script", "kill registry", "kill script", "kill registry"]
    for point, fault in zip(points, faults, strict=True):
        with setting_up(fresh) as script:
            fresh.until(
                lambda point=point, script=script: (
                    downloaded_bytes(fresh) >= point * total or script.poll() is not None
                ),
                f"{point:.0%} fetched",
            )
            assert script.poll() is None, f"it ended before {point:.0%}:\n{log_of(fresh)}"
            if fault == "kill registry":
                os.kill(pid_of(fresh.container("registry")), signal.SIGKILL)
                assert script.wait(600) == 0, log_of(fresh)  # it waits for the registry and resumes
                delete_models(fresh)
            elif fault == "Ctrl-C":
                os.killpg(script.pid, signal.SIGINT)
                assert script.wait(60) == 130, log_of(fresh)
                assert "again" in log_of(fresh)
    done = fresh.run("./scripts/offline-setup.sh", timeout=1800)  # with the images
    assert set(done.stdout.split()) >= MODELS
    assert "docker compose -f docker-compose.gpu-cluster.yml up -d" in done.stdout
    assert {model["name"]: model["status"] for model in fresh.request(8090, "/models")["models"]} == dict.fromkeys(
        MODELS, "ready"
    )


def delete_models(stack: Stack) -> None:
    """Delete two models, so that there is something to download."""
    stack.run("curl -fsS -X DELETE http://localhost:8090/models/qwen")
    stack.run("curl -fsS -X DELETE http://localhost:8090/models/tinyllama")


def log_of(stack: Stack) -> str:
    """Return the end of the script's log."""
    return (Path(stack.clone) / "setup.log").read_text(errors="replace")[-3000:]


def test_second_run_has_nothing_to_do(fresh: Stack) -> None:
    done = fresh.run("./scripts/offline-setup.sh --skip-images", timeout=600)
    assert done.stdout.count("ready") >= len(MODELS)


def test_unknown_name_lists_the_catalogue(fresh: Stack) -> None:
    done = fresh.run("./scripts/offline-setup.sh qwne", check=False)
    assert done.returncode not in (0, 130)
    assert "qwne" in done.stderr + done.stdout
    assert "tinyllama" in done.stderr + done.stdout


def test_doctor_reports_only_missing_gpus(fresh: Stack) -> None:
    done = fresh.run("./scripts/doctor.sh", timeout=900, check=False)
    problems = [line for line in done.stdout.splitlines() if "problem" in line.lower()]
    assert all("nvidia" in line.lower() or "gpu" in line.lower() for line in problems), done.stdout
