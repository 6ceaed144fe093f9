"""Selection of the engine, and its arguments."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kit.config.catalogue import Entry
from kit.config.settings import SettingsError, load_settings
from services.llm.app import create, default_max_tokens, engine_arguments
from services.llm.engine_selection import choose_engine, is_installed
from services.llm.settings import LlmSettings
from services.llm.vllm.arguments import command_line, environment_defaults
from services.llm.vllm.media_connector import CONNECTOR
from services.llm.vllm.tool_parsers import has_automatic_tools

ENTRY = Entry(name="tiny", kind="llm", hf_repo="org/tiny", aliases=("small",), context_length=2048)


@pytest.mark.skipif(not is_installed("transformers"), reason="transformers is not installed")
def test_transformers_is_selected_without_a_gpu() -> None:
    assert choose_engine("auto", "cpu") == "transformers"
    assert choose_engine("transformers", "auto") == "transformers"


@pytest.mark.skipif(is_installed("vllm"), reason="vLLM is installed here")
def test_missing_engine_fails_at_start() -> None:
    with pytest.raises(SettingsError, match="ENGINE=vllm is not installed"):
        choose_engine("vllm", "auto")


def test_engine_args_override_the_catalogue(tmp_path: Path) -> None:
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
def test_engine_arguments_become_vllm_options(arguments: dict[str, Any], expected: list[str]) -> None:
    line = command_line(Path("/model"), ENTRY, arguments, cpu=False)
    assert line[:2] == ["--model", "/model"]
    assert line[-4:] == ["--served-model-name", "tiny", "small", "org/tiny"]
    assert all(one in line for one in expected)


def test_cpu_defaults_can_be_overridden() -> None:
    assert "--enforce-eager" in command_line(Path("/m"), ENTRY, {}, cpu=True)
    given = command_line(Path("/m"), ENTRY, {"kv_cache_memory_bytes": 7}, cpu=True)
    assert [one for one in given if one.startswith("--kv-cache")] == ["--kv-cache-memory-bytes=7"]
    assert "--no-enforce-eager" in command_line(Path("/m"), ENTRY, {"enforce_eager": False}, cpu=True)


@pytest.mark.parametrize("name", ["model", "served_model_name", "port", "api_key"])
def test_reserved_arguments_are_rejected(name: str) -> None:
    with pytest.raises(SettingsError, match=name):
        command_line(Path("/m"), ENTRY, {name: "x"}, cpu=False)


def test_tool_parser_is_detected_unless_configured(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text("{% if tools %}[TOOL_CALLS]{% endif %}")
    line = command_line(tmp_path, ENTRY, {}, cpu=False)
    assert {"--tool-call-parser=mistral", "--enable-auto-tool-choice"} <= set(line)
    line = command_line(tmp_path, ENTRY, {"tool_call_parser": "hermes"}, cpu=False)
    assert "--tool-call-parser=hermes" in line
    assert "--enable-auto-tool-choice" not in line
    line = command_line(tmp_path, ENTRY, {"tool_call_parser": None}, cpu=False)
    assert not [one for one in line if one.startswith("--tool")]


@pytest.mark.parametrize(
    ("catalogue", "setting", "expected"), [(None, None, None), (512, None, 512), (None, 64, 64), (512, 64, 64)]
)
def test_default_limit_of_the_catalogue_is_overridden_by_the_setting(
    catalogue: int | None, setting: int | None, expected: int | None
) -> None:
    """As ENGINE_ARGS overrides engine_args."""
    entry = ENTRY.model_copy(update={"default_max_tokens": catalogue})
    assert default_max_tokens(entry, load_settings(LlmSettings, default_max_tokens=setting)) == expected


@pytest.mark.parametrize(
    ("template", "arguments", "expected"),
    [
        ("{{ messages }}", {}, False),
        ("{% if tools %}<tool_call>", {}, True),
        ("{% if tools %}<tool_call>", {"tool_call_parser": None}, False),
        ("{% if tools %}<tool_call>", {"tool_call_parser": "hermes"}, False),  # without enable_auto_tool_choice
        ("{{ messages }}", {"tool_call_parser": "hermes", "enable_auto_tool_choice": True}, True),
        ("{{ messages }}", {"chat_template": "/with-tools.jinja"}, True),
    ],
)
def test_automatic_tool_calls_need_a_parser_and_a_template_with_tools(
    tmp_path: Path, template: str, arguments: dict[str, Any], expected: bool
) -> None:
    """An operator's parser or template is trusted."""
    (tmp_path / "chat_template.jinja").write_text(template)
    line = command_line(tmp_path, ENTRY, arguments, cpu=False)
    parsed = SimpleNamespace(
        tool_call_parser=next((one.partition("=")[2] for one in line if one.startswith("--tool-call-parser")), None),
        enable_auto_tool_choice="--enable-auto-tool-choice" in line,
    )
    assert has_automatic_tools(tmp_path, arguments, parsed) is expected


def test_media_connector_is_ours() -> None:
    """vLLM's own connector fetches any URL, including private addresses of the cluster."""
    assert environment_defaults()["VLLM_MEDIA_CONNECTOR"] == CONNECTOR
    with pytest.raises(SettingsError, match="IMAGE_HOSTS"):
        command_line(Path("/m"), ENTRY, {"allowed_media_domains": ["images.example.org"]}, cpu=False)


def test_model_of_another_kind_is_rejected(tmp_path: Path) -> None:
    catalogue = tmp_path / "models.yaml"
    catalogue.write_text("m: {kind: embedding, hf_repo: a/b}\n")
    with pytest.raises(SettingsError, match="of kind embedding"):
        create(load_settings(LlmSettings, model="m", catalogue=catalogue))


def test_every_module_imports_without_an_engine() -> None:
    """In a new interpreter where engine packages cannot be imported."""
    code = """
import sys, pkgutil, importlib
for name in ("torch", "vllm", "transformers", "PIL"):
    sys.modules[name] = None
import services.llm
for module in pkgutil.walk_packages(services.llm.__path__, "services.llm."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
