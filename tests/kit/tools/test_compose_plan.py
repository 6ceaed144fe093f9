"""Summary of a compose project in lines for shell scripts."""

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


LINES = list(compose_plan.lines(PROJECT))


def test_images_are_listed_once() -> None:
    """Built images first, with a service that can build them; images of switched-off services as `off`."""
    assert [line for line in LINES if line[0] in ("image", "off")] == [
        ("image", "edge:1", "build", "edge"),
        ("image", "llm:1", "build", "llm-primary,vision"),
        ("image", "registry:1", "build", "registry,secrets"),
        ("image", "minio:1", "pull", "minio"),
        ("off", "chat:1", "pull", "chat-ui"),
    ]


def test_gpus_ports_models_and_open_networks() -> None:
    """Switched-off services are skipped."""
    rest = [line for line in LINES if line[0] not in ("image", "off")]
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


def test_reads_stdin_and_writes_stdout(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(PROJECT)))
    compose_plan.main()
    assert "model\tvision\tllava\n" in capsys.readouterr().out
