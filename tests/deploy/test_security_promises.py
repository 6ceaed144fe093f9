"""Promises of docs/security.md that compose files, Dockerfile and build scripts keep, checked without Docker."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from gateway.settings import GatewaySettings
from kit.config.settings import load_settings
from tests.deploy.compose_files import CLUSTER, ONLINE, ROOT, load, texts
from tests.deploy.test_compose_parts import SERVICES as PARTS
from tests.deploy.test_compose_parts import has_compose

SECURITY = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
CONTAINERS = SECURITY.partition("## Containers")[2].partition("\n## ")[0]
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text()
INSTALL = (ROOT / "deploy" / "images" / "install.sh").read_text()
BOTH = pytest.mark.parametrize("file", [ONLINE, CLUSTER])
MOVING = "python:3.11-slim-bookworm"
# The user of each container that has another than its image, and those that keep the one of a third-party image.
USERS = {"secrets": "0:10001", "chatui-settings": "0:10001", "mongo": "999:999"}
THIRD_PARTY = {"minio", "chat-ui", "prometheus", "grafana"}


@BOTH
def test_users_of_containers(file: str) -> None:
    """uid 10001 (`tests/images` checks our images), but for those that the page names."""
    services = load(file)["services"] | {name.removesuffix("-1"): one for name, one in PARTS.items() if name[-1] == "1"}
    assert {name: service["user"] for name, service in services.items() if "user" in service} == USERS
    ours = {name for name, service in services.items() if "gpu-cluster/" in service["image"]}
    assert services.keys() - ours - USERS.keys() == THIRD_PARTY
    assert all(f"`{name}`" in CONTAINERS for name in USERS.keys() | THIRD_PARTY)
    for name, user in USERS.items():
        assert user != "0:10001" or services[name]["network_mode"] == "none"


def test_only_the_base_image_has_a_moving_tag() -> None:
    default = re.compile(r"[A-Z_]+_IMAGE(?::-|=)([\w./-]+:[\w.-]+)")
    images = {image for text in [DOCKERFILE, *texts().values()] for image in default.findall(text)}
    images = {image for image in images if not image.startswith("gpu-cluster/")}
    pinned = re.compile(r"v?\d+\.\d+\.\d+|sha-[0-9a-f]{7}|RELEASE\.[\dTZ-]+")
    assert len(images) == 7
    assert {image for image in images if not pinned.fullmatch(image.partition(":")[2])} == {MOVING}
    assert f"`{MOVING}`" in CONTAINERS


def test_only_torch_is_installed_without_hashes() -> None:
    """Every pip of the images."""
    assert "pip install" not in DOCKERFILE
    torch, rest = re.findall(r"^install_torch\(\) \{\n.*?^\}\n", INSTALL, re.MULTILINE | re.DOTALL)[0], INSTALL
    rest = rest.replace(torch, "")
    calls = [line for line in rest.splitlines() if "pip_install " in line and "() {" not in line]
    assert len(calls) == 2
    assert all("--require-hashes" in line for line in calls)
    assert "--require-hashes" not in torch
    assert "locked by version only" in CONTAINERS
    for lock in (ROOT / "requirements").glob("*.txt"):
        packages = re.findall(r"^[a-z0-9._-]+==.*\\\n +--hash=sha256:[0-9a-f]{64}", lock.read_text(), re.MULTILINE)
        assert len(packages) == len(re.findall(r"^[a-z0-9._-]+==", lock.read_text(), re.MULTILINE)), lock.name


def test_a_file_replaces_a_secret_that_compose_leaves_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`X_FILE` for every secret `X` of the gateway that compose passes; `${X:-}` is empty without a value in .env."""
    passed = load(CLUSTER)["services"]["gateway"]["environment"]
    (tmp_path / "secret").write_text("name=s3cret\n")
    for name in ("GATEWAY_API_KEYS", "BACKEND_KEYS", "ADMIN_TOKEN"):
        assert passed[name] == f"${{{name}:-}}"
        assert f"`{name}`" in SECURITY
        monkeypatch.setenv(name, "")
        monkeypatch.setenv(f"{name}_FILE", str(tmp_path / "secret"))
    settings = load_settings(GatewaySettings)
    for secret in (settings.gateway_api_keys, settings.backend_keys, settings.admin_token):
        assert secret is not None
        assert secret.get_secret_value() == "name=s3cret"


@pytest.mark.skipif(not has_compose(), reason="docker compose is not here")
@BOTH
def test_example_of_an_override_file(file: str, tmp_path: Path) -> None:
    """Compose accepts it together with both files."""
    (example,) = re.findall(r"```yaml\n(.*?)```", SECURITY, re.DOTALL)
    (tmp_path / "override.yml").write_text(example)
    (path,) = {
        service["environment"]["GATEWAY_API_KEYS_FILE"] for service in yaml.safe_load(example)["services"].values()
    }
    command = ["docker", "compose", "-f", str(ROOT / file), "-f", "override.yml", "config", "--format", "json"]
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    gateway = json.loads(done.stdout)["services"]["gateway"]
    assert gateway["environment"]["GATEWAY_API_KEYS_FILE"] == path == f"/run/secrets/{gateway['secrets'][0]['source']}"
