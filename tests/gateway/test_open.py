"""Who may reach the gateway without a key: everybody on this machine, others only on purpose."""

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
def test_starts(settings: dict[str, object]) -> None:
    """On loopback, with keys, or when it is said."""
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
    """One line with what is open and the three ways out."""
    with pytest.raises(SettingsError) as caught:
        load_settings(GatewaySettings, **settings)
    (line,) = str(caught.value).splitlines()
    for part in (where, "GATEWAY_API_KEYS", "=127.0.0.1", "ALLOW_UNAUTHENTICATED=yes"):
        assert part in line


def test_keys_without_a_key_do_not_open_it() -> None:
    """What was set to lock it must not open it: the start fails with the variable's name."""
    with pytest.raises(SettingsError, match="GATEWAY_API_KEYS contains no key"):
        load_settings(GatewaySettings, cluster_bind="0.0.0.0", gateway_api_keys=" , ")


@pytest.mark.parametrize("value", ["localhost", "everywhere", "0.0.0.0/0"])
def test_cluster_bind_is_an_address(value: str) -> None:
    """As Docker wants it before a port."""
    with pytest.raises(SettingsError, match="CLUSTER_BIND is"):
        load_settings(GatewaySettings, cluster_bind=value)


def test_the_program_says_it_and_exits_78() -> None:
    """A supervisor does not try again, and a person reads one line."""
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
    """Where everybody comes through the published port, coming through it is no reason to trust."""
    settings = load_settings(
        GatewaySettings,
        host="0.0.0.0",
        cluster_bind=bind,
        admin_trusted_networks="127.0.0.0/8, docker-host, edge",
        allow_unauthenticated=True,
    )
    assert settings.trusted_places() == trusted
