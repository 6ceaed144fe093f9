"""deploy/compose/chat.yml and monitoring.yml: closed containers, off unless asked for, extended as they stand."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = ROOT / "deploy" / "compose"
PARTS = {"chat": "CHAT_UI", "monitoring": "MONITORING"}
SERVICES = {
    name: (PARTS[part], service)
    for part in PARTS
    for name, service in yaml.safe_load((COMPOSE / f"{part}.yml").read_text())["services"].items()
}


def test_services() -> None:
    """The names that both compose files know."""
    assert set(SERVICES) == {"chatui-settings", "chat-ui", "mongo", "prometheus", "grafana"}


@pytest.mark.parametrize("name", SERVICES)
def test_closed_and_off(name: str) -> None:
    """Nothing can be written but volumes and /tmp, nothing be gained, nothing grow; off by default."""
    variable, service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["deploy"] == {"replicas": f"${{{variable}:-0}}"}
    assert {"mem_limit", "pids_limit", "logging", "healthcheck"} <= service.keys()
    assert not {"privileged", "cap_add", "ports", "networks", "container_name"} & service.keys()
    if name != "chatui-settings":
        assert service["restart"] == "unless-stopped"


@pytest.mark.parametrize("name", ["chat-ui", "mongo", "prometheus", "grafana"])
def test_images_of_others_are_pinned_and_can_be_replaced(name: str) -> None:
    """A variable names the image; its default has a tag that does not move."""
    match = re.fullmatch(r"\$\{([A-Z_]+)_IMAGE:-[\w./-]+:(.+)\}", SERVICES[name][1]["image"])
    assert match is not None
    assert match[1] == name.upper().replace("-", "_")
    assert re.fullmatch(r"v?\d+\.\d+\.\d+|sha-[0-9a-f]{7}", match[2])


def test_no_password_anywhere() -> None:
    """There is no administrator in Grafana, and nothing that looks like a password in either file."""
    grafana = SERVICES["grafana"][1]["environment"]
    assert grafana["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == "true"
    assert (grafana["GF_AUTH_ANONYMOUS_ORG_ROLE"], grafana["GF_AUTH_BASIC_ENABLED"]) == ("Viewer", "false")
    names = {name for _, service in SERVICES.values() for name in service.get("environment", ())}
    assert not [name for name in names if re.search("PASSWORD|SECRET|TOKEN", name)]


def test_what_is_mounted_is_there() -> None:
    """Every file and folder of this repository that a service mounts exists."""
    binds = [
        volume["source"]
        for _, service in SERVICES.values()
        for volume in service["volumes"]
        if isinstance(volume, dict)
    ]
    assert len(binds) == 4
    assert [source for source in binds if not (COMPOSE / source).exists()] == []
    assert os.access(ROOT / "deploy/chat-ui/start.sh", os.X_OK)


def has_compose() -> bool:
    docker = shutil.which("docker")
    return bool(docker) and subprocess.run([str(docker), "compose", "version"], capture_output=True).returncode == 0


# How the compose files use the parts.
USER = """
services:
  gateway: {image: "gateway:test", networks: [chat]}
  chatui-settings: {extends: {file: PARTS/chat.yml, service: chatui-settings}}
  mongo: {extends: {file: PARTS/chat.yml, service: mongo}, networks: [chat-db]}
  chat-ui:
    extends: {file: PARTS/chat.yml, service: chat-ui}
    networks: [chat, chat-db]
    ports: ["${CLUSTER_BIND:-127.0.0.1}:3000:3000"]
  prometheus: {extends: {file: PARTS/monitoring.yml, service: prometheus}, networks: [chat, monitoring]}
  grafana: {extends: {file: PARTS/monitoring.yml, service: grafana}, networks: [monitoring]}
configs: {catalogue: {file: ROOT/models.yaml}, chatui: {file: ROOT/chatui.env}}
networks: {chat: {}, chat-db: {internal: true}, monitoring: {internal: true}}
volumes: {chat-ui-settings: {}, mongo-data: {}, prometheus-data: {}, grafana-data: {}}
"""


def config(tmp_path: Path, **variables: str) -> dict[str, Any]:
    """What Compose makes of a file that extends the parts."""
    path = tmp_path / "compose.yml"
    path.write_text(USER.replace("PARTS", str(COMPOSE)).replace("ROOT", str(ROOT)))
    command = ["docker", "compose", "-p", "parts", "-f", str(path), "config", "--format", "json"]
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), **variables}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    services: dict[str, Any] = json.loads(done.stdout)["services"]
    return services


@pytest.mark.skipif(not has_compose(), reason="docker compose is not here")
def test_compose_takes_them(tmp_path: Path) -> None:
    """Extended, they are complete; one variable each switches them on."""
    off = config(tmp_path)
    assert {name: off[name]["deploy"]["replicas"] for name in SERVICES} == dict.fromkeys(SERVICES, 0)
    on = config(tmp_path, CHAT_UI="1", MONITORING="1", GATEWAY_API_KEYS="k", CHAT_UI_IMAGE="mirror/chat-ui:1")
    assert {name: on[name]["deploy"]["replicas"] for name in SERVICES} == dict.fromkeys(SERVICES, 1)
    assert on["chatui-settings"]["environment"]["GATEWAY_API_KEYS"] == "k"
    assert on["chat-ui"]["image"] == "mirror/chat-ui:1"
    assert on["chat-ui"]["depends_on"].keys() == {"chatui-settings", "mongo"}
    assert on["mongo"]["networks"].keys() == {"chat-db"}
    sources = {volume["source"] for volume in on["chat-ui"]["volumes"]}
    assert str(ROOT / "deploy/chat-ui/start.sh") in sources
