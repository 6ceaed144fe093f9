"""What a compose file comes to, told in lines that a shell can read."""

import io
import json
from typing import Any

import pytest

from kit.tools import compose_plan

PROJECT: dict[str, Any] = {
    "name": "gpu-cluster",
    "networks": {"inside": {"internal": True}, "front": {}},
    "services": {
        "edge": {
            "image": "edge:1",
            "build": {"context": "."},
            "networks": {"front": None, "inside": None},
            "ports": [{"host_ip": "127.0.0.1", "published": "8080", "target": 8080}, {"target": 9}],
        },
        "secrets": {"image": "registry:1", "network_mode": "none"},
        "registry": {"image": "registry:1", "build": {"context": "."}, "networks": {"inside": None}},
        "minio": {"image": "minio:1", "networks": {"inside": None}},
        "llm-primary": {
            "image": "llm:1",
            "build": {"context": "."},
            "networks": {"inside": None},
            "environment": {"MODEL": "qwen"},
            "deploy": {
                "resources": {"reservations": {"devices": [{"driver": "nvidia", "device_ids": ["0", "GPU-a"]}]}}
            },
        },
        "vision": {
            "image": "llm:1",
            "networks": {"inside": None},
            "environment": {"MODEL": "llava"},
            "deploy": {"replicas": 2, "resources": {"reservations": {"devices": [{"count": -1}]}}},
        },
        "chat-ui": {
            "image": "chat:1",
            "networks": {"front": None},
            "environment": {"MODEL": "never"},
            "ports": [{"published": "3000", "target": 3000}],
            "deploy": {"replicas": 0},
        },
    },
    "volumes": {"secrets": {"name": "gpu-cluster_secrets"}},
    "configs": {"catalogue": {"name": "gpu-cluster_catalogue", "file": "/srv/models.yaml"}},
}


def told() -> list[tuple[str, ...]]:
    return list(compose_plan.lines(PROJECT))


def test_images_are_told_once_with_how_they_come() -> None:
    """Those that we build first, by a service that can build them; a service that is off needs nothing."""
    assert [line for line in told() if line[0] in ("image", "off")] == [
        ("image", "edge:1", "build", "edge"),
        ("image", "llm:1", "build", "llm-primary,vision"),
        ("image", "registry:1", "build", "registry,secrets"),
        ("image", "minio:1", "pull", "minio"),
        ("off", "chat:1", "pull", "chat-ui"),
    ]


def test_gpus_ports_models_and_ways_out() -> None:
    """What the doctor compares with the machine; nothing of what is switched off."""
    rest = [line for line in told() if line[0] not in ("image", "off")]
    assert sorted(rest) == [
        ("config", "catalogue", "/srv/models.yaml"),
        ("gpu", "0", "llm-primary"),
        ("gpu", "GPU-a", "llm-primary"),
        ("gpu", "all", "vision"),
        ("model", "llm-primary", "qwen"),
        ("model", "vision", "llava"),
        ("open", "edge"),
        ("port", "127.0.0.1", "8080", "edge"),
        ("volume", "secrets", "gpu-cluster_secrets"),
    ]


def test_it_reads_what_compose_writes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """JSON on stdin, tabs and newlines on stdout."""
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(PROJECT)))
    compose_plan.main()
    assert "model\tvision\tllava\n" in capsys.readouterr().out
