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

    def port(number: int) -> int:
        return number + port_offset

    registry = Program(
        "registry",
        "registry",
        port(8090),
        common | {"PORT": str(port(8090)), "STORE": f"file:{home / 'registry'}"},
    )

    def service(name: str, module: str, number: int, model: str) -> Program:
        environment = common | {
            "PORT": str(port(number)),
            "SERVICE_NAME": name,
            "MODEL": model,
            "REGISTRY_URL": registry.url,
            "MODEL_CACHE": str(home / "models"),
        }
        if module == "services.llm":
            environment["STOP_GRACE"] = "5"  # supervisord sends SIGKILL after 15 s
        return Program(name, module, port(number), environment | OFFLINE, model)

    candidates: list[tuple[str, str, int, Kind]] = [
        ("llm-primary", "services.llm", 8000, "llm"),
        ("embedding", "services.embedding", 8002, "embedding"),
        ("multimodal", "services.llm", 8003, "multimodal"),
        ("transcription", "services.transcription", 8004, "transcription"),
    ]
    models = {entry.kind: entry.name for entry in catalogue}
    services = tuple(
        service(name, module, number, models[kind])
        for name, module, number, kind in candidates
        if kind != "multimodal" or vision
    )
    backends = ",".join(f"{program.name}={program.url}" for program in services)
    gateway = Program(
        "gateway",
        "gateway",
        port(8080),
        common | {"PORT": str(port(8080)), "SERVICES": backends},
    )
    return Plan(registry, services, gateway)
