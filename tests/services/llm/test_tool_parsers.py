"""Which parser of vLLM's a model gets, by excerpts of the chat templates that models of each family bring."""

import json
from pathlib import Path
from typing import Any

import pytest

from services.llm.tool_parsers import chat_template, tool_arguments

KNOWS = "{% if tools %}"


def model(folder: Path, template: str | None, **config: Any) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    if template is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    return folder


@pytest.mark.parametrize(
    ("template", "kind", "parser"),
    [
        (KNOWS + '<tool_call>\n{"name": <function-name>, "arguments": {}}\n</tool_call>', "qwen2", "hermes"),
        (KNOWS + '<tool_call>\n{"name": <function-name>}\n</tool_call>', "qwen3", "hermes"),
        (KNOWS + "<tool_call>\n<function=example>\n<parameter=a>", "qwen3_next", "qwen3_coder"),
        (KNOWS + "<tool_call>{function-name}\n<arg_key>", "glm4_moe", "glm45"),
        (KNOWS + "[AVAILABLE_TOOLS] ... [TOOL_CALLS]", "mistral", "mistral"),
        (KNOWS + "<|start_header_id|> Environment: ipython <|python_tag|>", "llama", "llama3_json"),
        (KNOWS + "<|header_start|>", "llama4", "llama4_pythonic"),
        (KNOWS + "<|start_of_role|><tool_call>", "granitemoehybrid", "granite4"),
        (KNOWS + "<|start|>assistant<|channel|>commentary to=functions", "gpt_oss", "openai"),
        (KNOWS + "tool▁calls▁begin functiontool▁sep ```json", "deepseek_v3", "deepseek_v3"),
        (KNOWS + "tool▁calls▁begintool▁call▁begin", "deepseek_v3", "deepseek_v31"),
        (KNOWS + "<|tool_calls_section_begin|>", "kimi_k2", "kimi_k2"),
        (KNOWS + "<|tool|> ... <|/tool|>", "phi3", "phi4_mini_json"),
    ],
)  # fmt: skip
def test_the_parser_is_the_one_for_the_models_calls(tmp_path: Path, template: str, kind: str, parser: str) -> None:
    arguments = tool_arguments(model(tmp_path, template, model_type=kind))
    assert arguments == {"tool_call_parser": parser, "enable_auto_tool_choice": True}


@pytest.mark.parametrize("template", [None, "{{ messages }}", KNOWS + "in a form that nobody knows"])
def test_other_models_can_be_forced_to_make_calls(tmp_path: Path, template: str | None) -> None:
    """In the form whose parser is given to them."""
    arguments = tool_arguments(model(tmp_path, template, model_type="llama"))
    assert arguments == {"tool_call_parser": "hermes", "enable_auto_tool_choice": True}


def test_a_vision_models_kind_is_that_of_its_text_model(tmp_path: Path) -> None:
    folder = model(tmp_path, KNOWS, model_type="llava_next", text_config={"model_type": "granite"})
    assert tool_arguments(folder)["tool_call_parser"] == "granite"


def test_templates_are_found_wherever_models_have_them(tmp_path: Path) -> None:
    assert chat_template(tmp_path) == ""
    (tmp_path / "chat_template.jinja").write_text("one")
    (tmp_path / "chat_template.json").write_text('{"chat_template": "two"}')
    named = [{"name": "default", "template": "three"}, {"name": "tool_use", "template": "four"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert chat_template(tmp_path).splitlines() == ["one", "two", "three", "four"]
