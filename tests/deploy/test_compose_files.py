"""Promises of the compose files, checked without Docker."""

import re
from typing import Any

import pytest
import yaml

from tests.deploy.compose_files import CLUSTER, ONLINE, ROOT, load, texts

BOTH = pytest.mark.parametrize("file", [ONLINE, CLUSTER])
QUICK_REFERENCE = (ROOT / "docs" / "quick-reference.md").read_text()
# The one network of the cluster file with a way out of the machine's own.
FRONT = "front"
# The network of the other file, which no service of this one is on.
UNUSED = "online"


def published(file: str) -> dict[int, tuple[str, str]]:
    """Port -> (address, service), as a host sees them."""
    found: dict[int, tuple[str, str]] = {}
    for service, definition in load(file)["services"].items():
        for port in definition.get("ports", []):
            address, outside, inside = re.fullmatch(r"(.+):(\d+):(\d+)", port).groups()  # type: ignore[union-attr]
            assert outside == inside, f"{service} listens on another port than it publishes"
            assert int(outside) not in found, f"{outside} is published twice"
            found[int(outside)] = (address, service)
    return found


def promised_ports() -> dict[int, str]:
    """Port -> name, from the table of the quick reference."""
    rows = re.findall(r"^\| ([A-Za-z ]+?) \| (\d{4}) \|", QUICK_REFERENCE, flags=re.MULTILINE)
    return {int(port): name for name, port in rows}


@BOTH
def test_published_ports_are_those_of_the_quick_reference(file: str) -> None:
    """And those of the monitoring."""
    assert set(promised_ports()) == set(published(file)) - {3001, 9090}


@BOTH
def test_cluster_bind_moves_only_gateway_and_chat_ui(file: str) -> None:
    moved = {port for port, (address, _) in published(file).items() if address == "${CLUSTER_BIND:-127.0.0.1}"}
    fixed = {address for address, _ in published(file).values()} - {"${CLUSTER_BIND:-127.0.0.1}"}
    assert moved == {8080, 3000}
    assert fixed == {"127.0.0.1"}


def test_both_files_are_one_project() -> None:
    """Same project name, services and volumes, so that either file manages what the other started."""
    online, cluster = load(ONLINE), load(CLUSTER)
    assert online["name"] == cluster["name"] == "gpu-cluster"
    only_here = {"only-online"}  # runs nowhere
    assert cluster["services"]["only-online"]["deploy"] == {"replicas": 0}
    assert set(online["services"]) == set(cluster["services"]) - only_here
    assert online["volumes"] == cluster["volumes"]
    assert set(online["networks"]) == set(cluster["networks"]), (
        "`down` by the one file would leave networks of the other"
    )


def test_both_files_use_the_same_images() -> None:
    online, cluster = load(ONLINE)["services"], load(CLUSTER)["services"]
    for service in ("registry", "gateway", "minio", "secrets"):
        assert online[service]["image"] == cluster[service]["image"]


def test_gpu_stanza_is_as_in_the_quick_reference() -> None:
    block = next(
        text for text in re.findall(r"```yaml\n(.*?)```", QUICK_REFERENCE, flags=re.DOTALL) if "devices" in text
    )
    promised = yaml.safe_load(block)["services"]["llm-primary"]
    ours = load(CLUSTER)["services"]["llm-primary"]
    assert ours["deploy"]["resources"] == promised["deploy"]["resources"]
    assert ours["environment"]["CUDA_VISIBLE_DEVICES"] == promised["environment"]["CUDA_VISIBLE_DEVICES"]
    lines = [line.strip() for line in block.splitlines() if line.strip() and "environment" not in line]
    text = (ROOT / CLUSTER).read_text()
    assert all(line in text for line in lines)


@pytest.mark.parametrize(
    ("service", "gpu"),
    [("llm-primary", "0"), ("llm-secondary", "1"), ("multimodal", "2"), ("embedding", "3"), ("transcription", "4")],
)
def test_each_service_reserves_its_gpu(service: str, gpu: str) -> None:
    """By device id, as in the quick reference."""
    (device,) = load(CLUSTER)["services"][service]["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "device_ids": [gpu], "capabilities": ["gpu"]}


def test_only_edge_containers_are_on_an_outer_network() -> None:
    """All others are on internal, isolated networks."""
    document = load(CLUSTER)
    networks = document["networks"]
    assert {name for name, network in networks.items() if not (network or {}).get("internal")} == {FRONT, UNUSED}
    isolated = {"com.docker.network.bridge.gateway_mode_ipv4": "isolated"}
    assert all(network["driver_opts"] == isolated for name, network in networks.items() if name not in (FRONT, UNUSED))
    for name, service in document["services"].items():
        assert (UNUSED in service.get("networks", [])) == (name == "only-online"), name
        if name == "edge" or name.startswith("edge-"):
            assert service["dns"] == ["127.0.0.1"]
            assert service["cap_add"] == ["NET_ADMIN"]
        else:
            assert FRONT not in service.get("networks", []), name
            assert "ports" not in service, name
            off = service.get("deploy") == {"replicas": 0}
            assert off or service.get("networks") or service.get("network_mode") == "none", name


@BOTH
def test_every_service_is_hardened(file: str) -> None:
    """No capabilities, no new privileges, read-only root, bounded logs, memory and processes."""
    for name, service in load(file)["services"].items():
        assert service["cap_drop"] == ["ALL"], name
        assert service.get("read_only") is True, name
        assert "no-new-privileges:true" in service["security_opt"] or name.startswith("edge"), name
        assert {"max-size", "max-file"} <= service["logging"]["options"].keys(), name
        assert service["mem_limit"], name
        assert service["pids_limit"], name
        assert service["restart"] in ("unless-stopped", "no"), name
        assert "privileged" not in service, name


@BOTH
def test_compose_files_contain_no_password(file: str) -> None:
    for name, service in load(file)["services"].items():
        for variable, value in (service.get("environment") or {}).items():
            if re.search(r"(?<!PUBLIC_)KEY|TOKEN|PASSWORD|SECRET", variable):
                empty = re.fullmatch(r"\$\{[A-Z_]+:-\}", str(value))
                assert empty or str(value).startswith("/run/"), f"{name}: {variable}"


def test_every_variable_is_documented() -> None:
    """.env.example holds every variable of the compose files, with the default that they have, and no other."""
    used: dict[str, set[str]] = {}
    for text in texts().values():
        for name, default in _variables(text):
            used.setdefault(name, set()).add(default)
    example = (ROOT / ".env.example").read_text()
    documented = dict(re.findall(r"^#([A-Z][A-Z0-9_]*)=(.*)$", example, flags=re.MULTILINE))
    assert set(documented) == set(used)
    for name, defaults in used.items():
        if len(defaults) == 1 and "$" not in (default := next(iter(defaults))) and name != "WHEELS":
            assert documented[name] == default, name


def test_env_example_sets_no_variable() -> None:
    lines = (ROOT / ".env.example").read_text().splitlines()
    assert [line for line in lines if line and not line.startswith("#")] == []


def _variables(text: str) -> list[tuple[str, str]]:
    """(name, default) of each `${NAME:-default}`; of a default with variables inside, those too."""
    text = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    flat = re.findall(r"\$\{([A-Z][A-Z0-9_]*):-([^${}]*)\}", text)
    outer: list[Any] = re.findall(r"\$\{([A-Z][A-Z0-9_]*):-([^{}]*\$\{[^{}]*\}[^{}]*)\}", text)
    return flat + outer
