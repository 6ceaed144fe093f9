"""The scripts, run with a fake `docker` (and `nvidia-smi`, `df`) on the PATH."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
END_S = 60.0
# Programs that every host has; nothing else is on the PATH, in particular no Python.
HOST_PROGRAMS = (
    *("awk", "basename", "bash", "cat", "cut", "date", "dirname", "env", "grep", "head", "mktemp", "paste", "rm"),
    *("sed", "sleep", "sort", "tail", "tr", "wc"),
)
PLAN = """\
image\tgpu-cluster/llm:1\tbuild\tllm-primary
image\tgpu-cluster/registry:1\tbuild\tregistry,secrets
image\tminio:1\tpull\tminio
off\tmongo:1\tpull\tmongo
gpu\t0\tllm-primary
gpu\t1\tllm-secondary
model\tllm-primary\tqwen
open\tregistry
port\t127.0.0.1\t1\tedge
volume\tsecrets\tgpu-cluster_secrets
"""
CONFIG = """\
name: gpu-cluster
services:
  registry:
    image: gpu-cluster/registry:1
configs:
  catalogue:
    file: {catalogue}
"""

DockerResponse = tuple[str, int | list[int], str, str]


@dataclass
class Host:
    """A machine on which a script runs; `responses` take precedence over those of a healthy Docker."""

    home: Path
    responses: list[DockerResponse] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)

    def program(self, name: str, text: str) -> None:
        """Put a program on the PATH."""
        path = self.home / "bin" / name
        path.unlink(missing_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    def free(self, gigabytes: int) -> None:
        """Set the free space of Docker's disk."""
        header = "Filesystem 1024-blocks Used Available Capacity Mounted on"
        self.program("df", f"#!/bin/sh\necho '{header}'\necho '/dev/x 1 1 {gigabytes * 10**6} 1% /'\n")

    def gpus(self, count: int) -> None:
        """Add GPUs, the driver and the container toolkit."""
        lines = "".join(f"GPU {number}: NVIDIA H100 (UUID: GPU-{number}{number})\\n" for number in range(count))
        self.program("nvidia-smi", f"#!/bin/sh\nprintf '{lines}'\n")
        self.responses.append(("^info .*Runtimes", 0, "runc nvidia \n", ""))

    def start(self, script: str, *arguments: str) -> "subprocess.Popen[str]":
        """Start a script of this project."""
        healthy: list[DockerResponse] = [
            ("^version", 0, "28.5.2\n", ""),
            ("^compose version", 0, "2.40.3\n", ""),
            ("^info .*DockerRootDir", 0, "/var/lib/docker\n", ""),
            ("config --quiet$", 0, "", ""),
            ("config --images", 0, "gpu-cluster/registry:1\n", ""),
            ("config --format json$", 0, "{}", ""),
            ("config$", 0, CONFIG.format(catalogue=self.home / "models.yaml"), ""),
            ("-m kit.tools.compose_plan$", 0, PLAN, ""),
            ("ps --all --quiet", 0, "c0ffee\n", ""),
            ("^inspect .*State.Running", 0, "2026-11-25T00:00:00Z\n", ""),
        ]
        (self.home / "responses.json").write_text(json.dumps([*self.responses, *healthy]))
        return subprocess.Popen(
            [str(ROOT / "scripts" / script), *arguments],
            env={"PATH": str(self.home / "bin"), "FAKE_DOCKER": str(self.home), **self.environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, script: str, *arguments: str) -> tuple[int, str]:
        """Run a script; return its exit code and output."""
        process = self.start(script, *arguments)
        said, _ = process.communicate(timeout=END_S)
        return process.returncode, said

    @property
    def calls(self) -> list[str]:
        """The command lines of docker, in order."""
        path = self.home / "calls"
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """A machine with Docker and free disk space, without GPU, and a catalogue of two models."""
    (tmp_path / "bin").mkdir()
    for name in HOST_PROGRAMS:
        found = shutil.which(name, path=os.defpath + ":/usr/bin:/bin")
        assert found is not None, f"this machine has no {name}"
        (tmp_path / "bin" / name).symlink_to(found)
    (tmp_path / "models.yaml").write_text("# a comment\nqwen: {kind: llm}\nminilm:\n  aliases: [embedding]\n")
    host = Host(tmp_path)
    host.program("docker", f'#!/bin/sh\nexec {sys.executable} {ROOT / "tests/scripts/fake_docker.py"} "$@"\n')
    host.free(500)
    return host
