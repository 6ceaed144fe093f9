"""Programs, ports and settings of the quickstart."""

from pathlib import Path

import pytest

from kit.config.catalogue import Catalogue
from quickstart.models.publish import PACKAGED, SHIPPED, choose_source, write_catalogue
from quickstart.options import parse
from quickstart.plan import OFFLINE, Plan, make_plan

DOCUMENTED = {
    "registry": 8090,
    "gateway": 8080,
    "llm-primary": 8000,
    "embedding": 8002,
    "multimodal": 8003,
    "transcription": 8004,
}


def plan(*, vision: bool = True, offset: int = 0) -> Plan:
    return make_plan(Catalogue.load(SHIPPED), SHIPPED, Path("/home"), vision=vision, port_offset=offset)


def test_ports_are_those_of_the_quick_reference() -> None:
    assert {program.name: program.port for program in plan().programs} == DOCUMENTED


def test_offset_moves_every_port() -> None:
    """And every URL with a port."""
    moved = plan(offset=100)
    assert {program.name: program.port for program in moved.programs} == {k: v + 100 for k, v in DOCUMENTED.items()}
    assert "llm-primary=http://127.0.0.1:8100" in moved.gateway.environment["SERVICES"]
    assert {service.environment["REGISTRY_URL"] for service in moved.services} == {"http://127.0.0.1:8190"}


def test_vision_is_opt_in() -> None:
    """Neither service nor backend without --with-vision."""
    assert "multimodal" not in [program.name for program in plan(vision=False).programs]
    assert "multimodal" not in plan(vision=False).gateway.environment["SERVICES"]


def test_services_run_offline() -> None:
    """Not the registry, which mirrors."""
    for service in plan().services:
        assert OFFLINE.items() <= service.environment.items()
    assert not OFFLINE.keys() & plan().registry.environment.keys()


def test_everything_listens_on_loopback() -> None:
    assert {program.environment["HOST"] for program in plan().programs} == {"127.0.0.1"}


def test_packaged_models_do_not_claim_the_hubs_commit(tmp_path: Path) -> None:
    """Converted copies have the revision `packaged`."""
    catalogue = write_catalogue(tmp_path / "models.yaml", "packages", vision=True)
    assert {entry.revision for entry in catalogue} == {PACKAGED}
    pinned = write_catalogue(tmp_path / "models.yaml", "hub", vision=False)
    assert all(len(entry.revision) == 40 for entry in pinned)
    assert "llava" not in [entry.name for entry in pinned]


def test_second_start_keeps_the_model_source(tmp_path: Path) -> None:
    path = tmp_path / "models.yaml"
    write_catalogue(path, "packages", vision=False)
    assert choose_source("auto", path) == "packages"
    write_catalogue(path, "hub", vision=False)
    assert choose_source("auto", path) == "hub"
    assert choose_source("packages", path) == "packages"


def test_unreachable_hub_selects_packages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert choose_source("auto", tmp_path / "models.yaml") == "packages"


@pytest.mark.parametrize("arguments", [["--models", "disk"], ["--port-offset", "99999"], ["--nope"]])
def test_invalid_options_show_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(arguments)
    assert caught.value.code == 2
    assert "usage:" in capsys.readouterr().err
