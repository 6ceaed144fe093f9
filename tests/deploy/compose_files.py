"""The compose files with `extends` and anchors resolved, variables left unexpanded."""

import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
ONLINE = "docker-compose.yml"
CLUSTER = "docker-compose.gpu-cluster.yml"

Definition = dict[str, Any]


def load(name: str) -> Definition:
    """One file with the definitions that its services extend merged in; which those are may hang on a default."""
    document: Definition = yaml.safe_load((ROOT / name).read_text())
    document["services"] = {service: _whole(body, ROOT) for service, body in document["services"].items()}
    return document


def _whole(service: Definition, folder: Path) -> Definition:
    extends = service.get("extends")
    if extends is None:
        return service
    path = folder / extends["file"]
    name = re.sub(r"\$\{[A-Z_]+:-([a-z0-9]+)\}", r"\1", extends["service"])
    base = _whole(yaml.safe_load(path.read_text())["services"][name], path.parent)
    return _merge(base, {key: value for key, value in service.items() if key != "extends"})


def _merge(base: Definition, over: Definition) -> Definition:
    """Compose's rule for what these files use: mappings merge, everything else is replaced."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def texts() -> dict[str, str]:
    """Every compose file of the project with its text."""
    paths = [*ROOT.glob("docker-compose*.yml"), *(ROOT / "deploy" / "compose").glob("*.yml")]
    return {str(path.relative_to(ROOT)): path.read_text() for path in paths}
