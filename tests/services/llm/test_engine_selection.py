"""Which engine runs, and the arguments that it gets."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kit.config.catalogue import Entry
from kit.config.settings import SettingsError, load_settings
from services.llm.app import create, engine_arguments
from services.llm.engine_selection import choose_engine, has
from services.llm.settings import LlmSettings
from services.llm.vllm_arguments import command_line, environment_defaults
from services.llm.vllm_media import CONNECTOR

ENTRY = Entry(name="tiny", kind="llm", hf_repo="org/tiny", aliases=("small",), context_length=2048)


@pytest.mark.skipif(not has("transformers"), reason="transformers is not installed")
def test_a_machine_without_a_gpu_runs_transformers() -> None:
    assert choose_engine("auto", "cpu") == "transformers"
    assert choose_engine("transformers", "auto") == "transformers"


@pytest.mark.skipif(has("vllm"), reason="vLLM is installed here")
def test_an_engine_that_is_not_installed_is_refused_at_start() -> None:
    with pytest.raises(SettingsError, match="ENGINE=vllm is not installed"):
        choose_engine("vllm", "auto")


def test_the_environment_wins_over_the_catalogue(tmp_path: Path) -> None:
    entry = ENTRY.model_copy(update={"engine_args": {"max-model-len": 1024, "dtype": "float16"}})
    settings = load_settings(LlmSettings, model="tiny", engine_args={"--max-model-len": 512})
    assert engine_arguments(entry, settings) == {"max_model_len": 512, "dtype": "float16"}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"gpu_memory_utilization": 0.5}, ["--gpu-memory-utilization=0.5"]),
        ({"enforce_eager": True}, ["--enforce-eager"]),
        ({"enable_prefix_caching": False}, ["--no-enable-prefix-caching"]),
        ({"limit_mm_per_prompt": {"image": 2}}, ['--limit-mm-per-prompt={"image": 2}']),
        ({"lora_modules": ["a=/a", "b=/b"]}, ["--lora-modules", "a=/a", "b=/b"]),
        ({"max_model_len": -1}, ["--max-model-len=-1"]),
        ({"dtype": None}, []),
    ],
)
def test_engine_arguments_become_vllms_own(arguments: dict[str, Any], expected: list[str]) -> None:
    line = command_line(Path("/model"), ENTRY, arguments, cpu=False)
    assert line[:2] == ["--model", "/model"]
    assert line[-4:] == ["--served-model-name", "tiny", "small", "org/tiny"]
    assert all(one in line for one in expected)


def test_a_cpu_gets_defaults_that_start_soon_and_can_be_changed() -> None:
    assert "--enforce-eager" in command_line(Path("/m"), ENTRY, {}, cpu=True)
    given = command_line(Path("/m"), ENTRY, {"kv_cache_memory_bytes": 7}, cpu=True)
    assert [one for one in given if one.startswith("--kv-cache")] == ["--kv-cache-memory-bytes=7"]
    assert "--no-enforce-eager" in command_line(Path("/m"), ENTRY, {"enforce_eager": False}, cpu=True)


@pytest.mark.parametrize("name", ["model", "served_model_name", "port", "api_key"])
def test_arguments_that_the_service_decides_are_refused(name: str) -> None:
    with pytest.raises(SettingsError, match=name):
        command_line(Path("/m"), ENTRY, {name: "x"}, cpu=False)


def test_tool_calls_are_read_as_the_model_writes_them_unless_somebody_chose(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text("{% if tools %}[TOOL_CALLS]{% endif %}")
    line = command_line(tmp_path, ENTRY, {}, cpu=False)
    assert {"--tool-call-parser=mistral", "--enable-auto-tool-choice"} <= set(line)
    line = command_line(tmp_path, ENTRY, {"tool_call_parser": "hermes"}, cpu=False)
    assert "--tool-call-parser=hermes" in line
    assert "--enable-auto-tool-choice" not in line
    line = command_line(tmp_path, ENTRY, {"tool_call_parser": None}, cpu=False)
    assert not [one for one in line if one.startswith("--tool")]


def test_media_are_read_by_the_services_own_rules() -> None:
    """vLLM by itself fetches any address that a request names, those of the cluster's own network among them."""
    assert environment_defaults()["VLLM_MEDIA_CONNECTOR"] == CONNECTOR
    with pytest.raises(SettingsError, match="IMAGE_HOSTS"):
        command_line(Path("/m"), ENTRY, {"allowed_media_domains": ["images.example.org"]}, cpu=False)


def test_a_model_of_another_kind_is_refused(tmp_path: Path) -> None:
    catalogue = tmp_path / "models.yaml"
    catalogue.write_text("m: {kind: embedding, hf_repo: a/b}\n")
    with pytest.raises(SettingsError, match="of kind embedding"):
        create(load_settings(LlmSettings, model="m", catalogue=catalogue))


def test_every_module_imports_without_an_engine() -> None:
    """The engines are hidden from a fresh interpreter, which then imports the whole package."""
    code = """
import sys, pkgutil, importlib
for name in ("torch", "vllm", "transformers", "PIL"):
    sys.modules[name] = None
import services.llm
for module in pkgutil.iter_modules(services.llm.__path__):
    if module.name != "__main__":
        importlib.import_module(f"services.llm.{module.name}")
"""
    subprocess.run([sys.executable, "-c", code], check=True)
