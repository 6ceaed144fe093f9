"""Chat UI and monitoring: hardened third-party containers, off by default, switched on by one variable each."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from chatui.env_file import read
from tests.deploy.compose_files import CLUSTER, ONLINE, ROOT

COMPOSE = ROOT / "deploy" / "compose"
PARTS = {"chat": ("chatui-settings", "chat-ui", "mongo"), "monitoring": ("prometheus", "grafana")}
NAMES = [name for names in PARTS.values() for name in names]
DOORS = ("edge-chat", "edge-monitoring")
SERVICES = {
    name: service
    for part in PARTS
    for name, service in yaml.safe_load((COMPOSE / f"{part}.yml").read_text())["services"].items()
}


def test_each_service_has_an_on_and_an_off_form() -> None:
    assert set(SERVICES) == {f"{name}-{switch}" for name in NAMES for switch in (0, 1)}


@pytest.mark.parametrize("name", NAMES)
def test_services_are_hardened(name: str) -> None:
    """Only volumes and /tmp are writable; no capabilities; bounded logs and memory."""
    service = SERVICES[f"{name}-1"]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert {"mem_limit", "pids_limit", "logging", "healthcheck"} <= service.keys()
    assert not {"privileged", "cap_add", "ports", "networks", "container_name", "deploy"} & service.keys()
    assert service["restart"] == ("no" if name == "chatui-settings" else "unless-stopped")


@pytest.mark.parametrize("name", NAMES)
def test_off_form_needs_no_extra_image(name: str) -> None:
    """Compose pulls images of services with 0 replicas too."""
    service = SERVICES[f"{name}-0"]
    assert service["deploy"] == {"replicas": 0}
    assert service["image"] == "gpu-cluster/gateway:${CLUSTER_VERSION:-0.1.0}"
    assert service["pull_policy"] == "never"


@pytest.mark.parametrize("name", ["chat-ui", "mongo", "prometheus", "grafana"])
def test_third_party_images_are_pinned_variables(name: str) -> None:
    match = re.fullmatch(r"\$\{([A-Z_]+)_IMAGE:-[\w./-]+:(.+)\}", SERVICES[f"{name}-1"]["image"])
    assert match is not None
    assert match[1] == name.upper().replace("-", "_")
    assert re.fullmatch(r"v?\d+\.\d+\.\d+|sha-[0-9a-f]{7}", match[2])


def test_no_password_and_no_grafana_administrator() -> None:
    grafana = SERVICES["grafana-1"]["environment"]
    assert grafana["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == "true"
    assert (grafana["GF_AUTH_ANONYMOUS_ORG_ROLE"], grafana["GF_AUTH_BASIC_ENABLED"]) == ("Viewer", "false")
    names = {name for service in SERVICES.values() for name in service.get("environment", ())}
    assert not [name for name in names if re.search("PASSWORD|SECRET|TOKEN", name)]


def test_mounted_files_exist() -> None:
    volumes = [volume for service in SERVICES.values() for volume in service.get("volumes", ())]
    binds = [volume["source"] for volume in volumes if isinstance(volume, dict)]
    assert len(binds) == 5
    assert [source for source in binds if not (COMPOSE / source).exists()] == []
    assert os.access(ROOT / "deploy/chat-ui/start.sh", os.X_OK)


def test_welcome_picture_is_where_chat_ui_looks_for_it() -> None:
    """Its image has none for these assets. The dialogue's other text is fixed, except for the name."""
    settings = read((ROOT / "chatui.env").read_text())
    assert settings["PUBLIC_APP_NAME"].value == "GPU Cluster"
    target = f"/app/build/client/{settings['PUBLIC_APP_ASSETS'].value}/omni-welcome.gif"
    volumes = [volume for volume in SERVICES["chat-ui-1"]["volumes"] if isinstance(volume, dict)]
    (picture,) = [volume for volume in volumes if volume["target"] == target]
    assert picture["read_only"]
    assert (COMPOSE / picture["source"]).read_bytes().startswith(b"GIF8")


def has_compose() -> bool:
    docker = shutil.which("docker")
    return bool(docker) and subprocess.run([str(docker), "compose", "version"], capture_output=True).returncode == 0


def config(file: str, home: Path, **variables: str) -> dict[str, Any]:
    """What Compose makes of one of the two files with these variables and no others."""
    command = ["docker", "compose", "-f", str(ROOT / file), "config", "--format", "json"]
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), **variables}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    services: dict[str, Any] = json.loads(done.stdout)["services"]
    return services


def replicas(services: dict[str, Any], *names: str) -> set[int]:
    return {services[name].get("deploy", {}).get("replicas", 1) for name in names}


@pytest.mark.skipif(not has_compose(), reason="docker compose is not here")
@pytest.mark.parametrize("file", [ONLINE, CLUSTER])
def test_compose_accepts_the_parts(file: str, tmp_path: Path) -> None:
    """Off by default; one variable switches each part on."""
    off = config(file, tmp_path)
    assert replicas(off, *NAMES, *DOORS) == {0}
    chat = config(file, tmp_path, CHAT_UI="1", GATEWAY_API_KEYS="k", CHAT_UI_IMAGE="mirror/chat-ui:1")
    assert replicas(chat, *PARTS["chat"]) == {1}
    assert replicas(chat, *PARTS["monitoring"], "edge-monitoring") == {0}
    assert chat["chatui-settings"]["environment"]["GATEWAY_API_KEYS"] == "k"
    assert chat["chat-ui"]["image"] == "mirror/chat-ui:1"
    assert chat["chat-ui"]["depends_on"].keys() == {"chatui-settings", "mongo"}
    assert str(ROOT / "deploy/chat-ui/start.sh") in {volume["source"] for volume in chat["chat-ui"]["volumes"]}
    assert chat["mongo"]["networks"].keys() == {"chat-db"}
    monitoring = config(file, tmp_path, MONITORING="1")
    assert replicas(monitoring, *PARTS["monitoring"]) == {1}
    assert replicas(monitoring, *PARTS["chat"], "edge-chat") == {0}
    doors = {1} if file == CLUSTER else {0}
    assert (replicas(chat, "edge-chat"), replicas(monitoring, "edge-monitoring")) == (doors, doors)
