"""A Hub in a container in place of the internet, on a network that the registry of docker-compose.yml joins."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.stack.stack import ROOT
from tests.support import models
from tests.support.programs.docker import docker

NETWORK = HOST = "gpu-cluster-test-hub"
URL = f"http://{HOST}:8090"
IMAGE = "gpu-cluster/registry:0.1.0"
# Connects the registry of docker-compose.yml to this Hub; Compose reads a file of this name by default.
OVERRIDE = f"""\
services:
  registry:
    networks: [online, hub]
networks:
  hub: {{external: true, name: {NETWORK}}}
"""


def fill(folder: Path) -> None:
    """Import the small models of tests/stack/models.yaml into a store in `folder`, once."""
    folders = {"small/smollm2": "smollm2", "small/tinyllama": "smollm2", "small/minilm": "minilm"}
    sources = {repo: models.folder(name) for repo, name in folders.items()}
    sources |= {"small/whisper": models.folder("whisper"), "small/llava": models.tiny_llava()}
    for repo, source in sources.items():
        name = repo.partition("/")[2]
        if (folder / "names" / f"{name}.json").exists():
            continue
        subprocess.run(
            [sys.executable, "-m", "registry", "import", name, str(source), "--repo", repo, "--revision", "main"],
            cwd=ROOT,
            env={"STORE": f"file:{folder}", "CATALOGUE": "", "PATH": "/usr/bin:/bin"},
            check=True,
        )


class Hub:
    """The running Hub; `stop` simulates the loss of the internet."""

    def start(self) -> None:
        """Start the container."""
        docker("start", HOST)

    def stop(self) -> None:
        """Stop the container."""
        docker("stop", "--time", "1", HOST)


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[Hub]:
    """Serve the store in `folder` as a Hub until the end of the block."""
    remove()
    docker("network", "create", "--internal", NETWORK)
    # As root, because the folder belongs to the user of the tests. The image has labels of the Compose project that
    # built it, which would make this container one of its services.
    docker(
        *("run", "--detach", "--name", HOST, "--network", NETWORK, "--user", "0"),
        *("--label", "com.docker.compose.project=", "--label", "com.docker.compose.service="),
        *("--volume", f"{folder}:/store", "--env", "STORE=file:/store", IMAGE),
    )
    try:
        yield Hub()
    finally:
        remove()


def remove() -> None:
    """Remove container and network of an earlier run."""
    if docker("ps", "-aq", f"--filter=name=^{HOST}$"):
        docker("rm", "--force", "--volumes", HOST)
    if docker("network", "ls", "-q", f"--filter=name=^{NETWORK}$"):
        docker("network", "rm", NETWORK)
