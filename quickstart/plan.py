"""Programs of the cluster with their ports and environment variables. No I/O."""

import sys
from dataclasses import dataclass, field
from pathlib import Path

from kit.config.catalogue import Catalogue, Kind

LOOPBACK = "127.0.0.1"

# Disables every network access of the engines; all files are local.
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    "HF_HUB_DISABLE_XET": "1",
    "DISABLE_SAFETENSORS_CONVERSION": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_NO_USAGE_STATS": "1",
}


@dataclass(frozen=True)
class Program:
    """One process. `model` is its catalogue name, None for registry and gateway."""

    name: str
    module: str
    port: int
    environment: dict[str, str] = field(default_factory=dict)
    model: str | None = None

    @property
    def url(self) -> str:
        """Base URL."""
        return f"http://{LOOPBACK}:{self.port}"

    @property
    def command(self) -> list[str]:
        """Command line."""
        return [sys.executable, "-m", self.module]


@dataclass(frozen=True)
class Plan:
    """All programs: the registry, a service per model, the gateway."""

    registry: Program
    services: tuple[Program, ...]
    gateway: Program

    @property
    def programs(self) -> tuple[Program, ...]:
        """All programs, in start order."""
        return (self.registry, *self.services, self.gateway)


def make_plan(catalogue: Catalogue, catalogue_path: Path, home: Path, *, vision: bool, port_offset: int) -> Plan:
    """Return the programs on the ports of the quick reference plus `port_offset`."""
    common = {"HOST": LOOPBACK, "CATALOGUE": str(catalogue_path), "LOG_FORMAT": "console"}

    def program(name: str, module: str, port: int, environment: dict[str, str], model: str | None = None) -> Program:
        port += port_offset
        return Program(name, module, port, common | {"PORT": str(port)} | environment, model)

    registry = program("registry", "registry", 8090, {"STORE": f"file:{home / 'registry'}"})
    models = {entry.kind: entry.name for entry in catalogue}
    service = OFFLINE | {"REGISTRY_URL": registry.url, "MODEL_CACHE": str(home / "models")}
    # supervisord sends SIGKILL after 15 s.
    llm = service | {"STOP_GRACE": "5"}
    candidates: list[tuple[str, str, int, Kind, dict[str, str]]] = [
        ("llm-primary", "services.llm", 8000, "llm", llm),
        ("embedding", "services.embedding", 8002, "embedding", service),
        ("multimodal", "services.llm", 8003, "multimodal", llm),
        ("transcription", "services.transcription", 8004, "transcription", service),
    ]
    services = tuple(
        program(name, module, port, environment | {"SERVICE_NAME": name, "MODEL": models[kind]}, models[kind])
        for name, module, port, kind, environment in candidates
        if kind != "multimodal" or vision
    )
    backends = ",".join(f"{backend.name}={backend.url}" for backend in services)
    return Plan(registry, services, program("gateway", "gateway", 8080, {"SERVICES": backends}))
