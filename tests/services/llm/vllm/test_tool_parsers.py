"""Selection of vLLM's tool parser, with excerpts of chat templates of each family."""

import json
from pathlib import Path
from typing import Any

import pytest

from services.llm.vllm.tool_parsers import chat_template, tool_arguments

TOOLS = "{% if tools %}"


def model(folder: Path, template: str | None, **config: Any) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    if template is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    return folder


@pytest.mark.parametrize(
    ("template", "kind", "parser"),
    [
        (TOOLS + '<tool_call>\n{"name": <function-name>, "arguments": {}}\n</tool_call>', "qwen2", "hermes"),
        (TOOLS + '<tool_call>\n{"name": <function-name>}\n</tool_call>', "qwen3", "hermes"),
        (TOOLS + "<tool_call>\n<function=example>\n<parameter=a>", "qwen3_next", "qwen3_coder"),
        (TOOLS + "<tool_call>{function-name}\n<arg_key>", "glm4_moe", "glm45"),
        (TOOLS + "[AVAILABLE_TOOLS] ... [TOOL_CALLS]", "mistral", "mistral"),
        (TOOLS + "<|start_header_id|> Environment: ipython <|python_tag|>", "llama", "llama3_json"),
        (TOOLS + "<|header_start|>", "llama4", "llama4_pythonic"),
        (TOOLS + "<|start_of_role|><tool_call>", "granitemoehybrid", "granite4"),
        (TOOLS + "<|start|>assistant<|channel|>commentary to=functions", "gpt_oss", "openai"),
        (TOOLS + "tool▁calls▁begin functiontool▁sep ```json", "deepseek_v3", "deepseek_v3"),
        (TOOLS + "tool▁calls▁begintool▁call▁begin", "deepseek_v3", "deepseek_v31"),
        (TOOLS + "<|tool_calls_section_begin|>", "kimi_k2", "kimi_k2"),
        (TOOLS + "<|tool|> ... <|/tool|>", "phi3", "phi4_mini_json"),
    ],
)  # fmt: skip
def test_parser_matches_the_model_family(tmp_path: Path, template: str, kind: str, parser: str) -> None:
    arguments = tool_arguments(model(tmp_path, template, model_type=kind))
    assert arguments == {"tool_call_parser": parser, "enable_auto_tool_choice": True}


@pytest.mark.parametrize("template", [None, "{{ messages }}", TOOLS + "in an unknown format"])
def test_other_models_get_the_fallback_parser(tmp_path: Path, template: str | None) -> None:
    """Forced tool calls work with every model."""
    arguments = tool_arguments(model(tmp_path, template, model_type="llama"))
    assert arguments == {"tool_call_parser": "hermes", "enable_auto_tool_choice": True}


def test_vision_model_uses_its_text_model_type(tmp_path: Path) -> None:
    folder = model(tmp_path, TOOLS, model_type="llava_next", text_config={"model_type": "granite"})
    assert tool_arguments(folder)["tool_call_parser"] == "granite"


def test_templates_are_read_from_all_files(tmp_path: Path) -> None:
    assert chat_template(tmp_path) == ""
    (tmp_path / "chat_template.jinja").write_text("one")
    (tmp_path / "chat_template.json").write_text('{"chat_template": "two"}')
    named = [{"name": "default", "template": "three"}, {"name": "tool_use", "template": "four"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert chat_template(tmp_path).splitlines() == ["one", "two", "three", "four"]
