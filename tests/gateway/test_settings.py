"""Settings from defaults, environment and files."""

from pathlib import Path

import pytest

from gateway.settings import GatewaySettings
from kit.config.settings import SettingsError, load_settings


def test_defaults_match_the_quick_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SERVICES", "PORT"):
        monkeypatch.delenv(name, raising=False)
    settings = load_settings(GatewaySettings)
    assert settings.port == 8080
    assert {target.name: target.port for target in settings.services} == {
        "llm-primary": 8000,
        "llm-secondary": 8001,
        "embedding": 8002,
        "multimodal": 8003,
        "transcription": 8004,
    }


def test_services_and_keys_from_environment_and_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SERVICES", "a=http://a:1")
    (tmp_path / "keys").write_text("one\ntwo, three\n")
    (tmp_path / "backends").write_text("a=secret-a\nb=secret=b\n")
    monkeypatch.setenv("GATEWAY_API_KEYS_FILE", str(tmp_path / "keys"))
    monkeypatch.setenv("BACKEND_KEYS_FILE", str(tmp_path / "backends"))
    settings = load_settings(GatewaySettings)
    assert [target.name for target in settings.services] == ["a"]
    ring = settings.key_ring()
    for key in ("one", "two", "three"):
        assert ring.refusal(f"Bearer {key}") is None
    assert ring.refusal("Bearer four") is not None
    assert settings.keys_of_backends() == {"a": "secret-a", "b": "secret=b"}


@pytest.mark.parametrize("value", ["a", "a=", "a=b c"])
def test_invalid_backend_keys_are_not_shown(value: str) -> None:
    with pytest.raises(SettingsError, match="BACKEND_KEYS") as caught:
        load_settings(GatewaySettings, backend_keys=value)
    assert "not shown" in str(caught.value)


@pytest.mark.parametrize("value", [",", " ", "\n,"])
def test_empty_api_keys_are_an_error(value: str) -> None:
    with pytest.raises(SettingsError, match="GATEWAY_API_KEYS contains no key"):
        load_settings(GatewaySettings, gateway_api_keys=value).key_ring()
