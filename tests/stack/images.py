"""Builds of the project's images, and of stand-ins for images that cannot be pulled here."""

from pathlib import Path

from tests.stack.stack import MINIO_STANDIN, ROOT, Stack
from tests.support.programs.docker import BUILD_S, docker, wheels

STANDINS = Path(__file__).parent / "standins"


def build(stack: Stack) -> None:
    """Build every image of both compose files that this machine can build."""
    docker("build", "--quiet", "--tag", MINIO_STANDIN, str(STANDINS / "minio"), timeout=BUILD_S)
    stack.compose("build --quiet registry gateway llm-primary embedding transcription edge", timeout=BUILD_S)


def environment(hub: str) -> dict[str, str]:
    """Return the environment of every command of a stack: images, catalogue, Hub."""
    more = {"WHEELS": str(folder)} if (folder := wheels()) else {}
    return more | {
        "COMPOSE_PROJECT_NAME": "gpu-cluster-test",
        "CATALOGUE": str(ROOT / "tests" / "stack" / "models.yaml"),
        "HF_ENDPOINT": hub,
        "MINIO_IMAGE": MINIO_STANDIN,
        "LLM_IMAGE": "gpu-cluster/llm:0.1.0-cpu",
        "EMBEDDING_IMAGE": "gpu-cluster/embedding:0.1.0-cpu",
        "TRANSCRIPTION_IMAGE": "gpu-cluster/transcription:0.1.0-cpu",
        "CLUSTER_OVERRIDE": str(STANDINS / "cluster.yml"),
        "MODEL_START_PERIOD": "10m",
    }
