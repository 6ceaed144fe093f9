"""Access without a key: from this machine only, unless explicitly allowed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.settings import GatewaySettings
from kit.config.settings import SettingsError, load_settings
from tests.gateway.running import HANG_S

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"host": "localhost"},
        {"host": "::1"},
        {"host": "0.0.0.0", "cluster_bind": "127.0.0.1"},
        {"host": "0.0.0.0", "cluster_bind": "[::1]"},
        {"host": "0.0.0.0", "gateway_api_keys": "k"},
        {"cluster_bind": "0.0.0.0", "gateway_api_keys": "k"},
        {"cluster_bind": "192.168.1.5", "allow_unauthenticated": "yes"},
        {"host": "0.0.0.0", "allow_unauthenticated": True},
    ],
)
def test_starts_if_local_or_with_keys_or_allowed(settings: dict[str, object]) -> None:
    load_settings(GatewaySettings, **settings)


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        ({"host": "0.0.0.0"}, "0.0.0.0 (HOST)"),
        ({"host": "::"}, ":: (HOST)"),
        ({"host": "gpu-box"}, "gpu-box (HOST)"),
        ({"cluster_bind": "0.0.0.0"}, "0.0.0.0 (CLUSTER_BIND)"),
        ({"host": "0.0.0.0", "cluster_bind": "192.168.1.5"}, "192.168.1.5 (CLUSTER_BIND)"),
        ({"cluster_bind": "0.0.0.0", "allow_unauthenticated": "no"}, "0.0.0.0 (CLUSTER_BIND)"),
    ],
)
def test_refuses_to_be_open_by_accident(settings: dict[str, object], where: str) -> None:
    """One line with the address and the three options."""
    with pytest.raises(SettingsError) as caught:
        load_settings(GatewaySettings, **settings)
    (line,) = str(caught.value).splitlines()
    for part in (where, "GATEWAY_API_KEYS", "=127.0.0.1", "ALLOW_UNAUTHENTICATED=yes"):
        assert part in line


def test_empty_keys_prevent_the_start() -> None:
    with pytest.raises(SettingsError, match="GATEWAY_API_KEYS contains no key"):
        load_settings(GatewaySettings, cluster_bind="0.0.0.0", gateway_api_keys=" , ")


@pytest.mark.parametrize("value", ["localhost", "everywhere", "0.0.0.0/0"])
def test_cluster_bind_is_an_address(value: str) -> None:
    """With brackets for IPv6, as in Docker's port syntax."""
    with pytest.raises(SettingsError, match="CLUSTER_BIND is"):
        load_settings(GatewaySettings, cluster_bind=value)


def test_program_exits_78_with_one_line() -> None:
    program = subprocess.run(
        [sys.executable, "-m", "gateway"],
        cwd=ROOT,
        env={**os.environ, "HOST": "0.0.0.0", "CLUSTER_BIND": "0.0.0.0"},
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )
    assert program.returncode == 78
    assert program.stderr.startswith("gateway: The gateway would let everybody who reaches 0.0.0.0 (CLUSTER_BIND)")
    assert len(program.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("bind", "trusted"),
    [("127.0.0.1", ("127.0.0.0/8", "docker-host", "edge")), ("0.0.0.0", ("127.0.0.0/8",))],
)
def test_names_are_trusted_on_loopback_only(bind: str, trusted: tuple[str, ...]) -> None:
    """Elsewhere all clients come through the published port."""
    settings = load_settings(
        GatewaySettings,
        host="0.0.0.0",
        cluster_bind=bind,
        admin_trusted_networks="127.0.0.0/8, docker-host, edge",
        allow_unauthenticated=True,
    )
    assert settings.trusted_places() == trusted
