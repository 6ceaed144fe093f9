"""Selection of vLLM's tool call parser from the model's files.

The chat template shows the format of tool calls; families with the same format are distinguished by `model_type`. The
pairs follow vLLM's documentation (docs.vllm.ai, features/tool_calling) and `vllm/tool_parsers/__init__.py`.
"""

import json
from pathlib import Path
from typing import Any

# Takes precedence over the template.
BY_MODEL_TYPE = {
    "apertus": "apertus",
    "deepseek_v32": "deepseek_v32",
    "deepseek_v4": "deepseek_v4",
    "ernie4_5": "ernie45",
    "ernie4_5_moe": "ernie45",
    "gemma4": "gemma4",
    "glm4_moe": "glm45",
    "glm4_moe_lite": "glm47",
    "gpt_oss": "openai",
    "granite": "granite",
    "granitemoe": "granite",
    "granitemoehybrid": "granite4",
    "hunyuan_v1_moe": "hunyuan_a13b",
    "jamba": "jamba",
    "llama4": "llama4_pythonic",
    "mimo": "mimo",
    "olmo3": "olmo3",
    "step3": "step3",
}
# The first entry whose marks are all in the template.
BY_TEMPLATE: tuple[tuple[tuple[str, ...], str], ...] = (
    (("<|tool_calls_section_begin|>",), "kimi_k2"),
    (("tool▁calls▁begin", "```json"), "deepseek_v3"),
    (("tool▁calls▁begin",), "deepseek_v31"),
    (("<minimax:tool_call>",), "minimax_m2"),
    (("<seed:tool_call>",), "seed_oss"),
    (("<longcat_tool_call>",), "longcat"),
    (("<start_function_call>",), "functiongemma"),
    (("<|tool_call_start|>",), "lfm2"),
    (("<|action_start|>",), "internlm"),
    (("[TOOL_CALLS]",), "mistral"),
    (("<tool_call>", "<arg_key>"), "glm45"),
    (("<tool_call>", "<function="), "qwen3_coder"),
    (("<tool_call>",), "hermes"),
    (("<|tool|>", "<|/tool|>"), "phi4_mini_json"),
    (("<|python_tag|>",), "llama3_json"),
    (("ipython", "<|start_header_id|>"), "llama3_json"),
)
# For models without tool support: forced calls are structured output, which any model can produce, but vLLM requires a
# parser and automatic tool choice for them.
FALLBACK_PARSER = "hermes"


def tool_arguments(folder: Path) -> dict[str, Any]:
    """Return vLLM's arguments for tool calls of the model in `folder`.

    Forced calls work with every model; automatic ones need a chat template with tools.
    """
    template = chat_template(folder)
    parser = None
    if "tools" in template:
        parser = BY_MODEL_TYPE.get(_model_type(folder)) or _by_template(template)
    return {"tool_call_parser": parser or FALLBACK_PARSER, "enable_auto_tool_choice": True}


def has_automatic_tools(folder: Path, arguments: dict[str, Any], parsed: Any) -> bool:
    """Return whether the model may call tools by itself; `parsed` are vLLM's arguments, `arguments` the operator's.

    An operator's parser or template is trusted. Without one the model needs a chat template with tools, or it never
    sees them.
    """
    if not (parsed.enable_auto_tool_choice and parsed.tool_call_parser):
        return False
    return bool({"tool_call_parser", "chat_template"} & set(arguments)) or "tools" in chat_template(folder)


def chat_template(folder: Path) -> str:
    """Return all chat templates of the model, concatenated; empty if it has none."""
    templates = [file.read_text(encoding="utf-8") for file in sorted(folder.glob("*chat_template*.jinja"))]
    for name in ("chat_template.json", "tokenizer_config.json"):
        found = _json(folder / name).get("chat_template")
        if isinstance(found, str):
            templates.append(found)
        elif isinstance(found, list):  # named templates: default, tool_use, ...
            templates += [str(one.get("template", "")) for one in found if isinstance(one, dict)]
    return "\n".join(templates)


def _by_template(template: str) -> str | None:
    return next((parser for marks, parser in BY_TEMPLATE if all(mark in template for mark in marks)), None)


def _model_type(folder: Path) -> str:
    config = _json(folder / "config.json")
    text = config.get("text_config")
    kinds = (config.get("model_type"), text.get("model_type") if isinstance(text, dict) else None)
    return next((kind for kind in kinds if isinstance(kind, str) and kind in BY_MODEL_TYPE), "")


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return found if isinstance(found, dict) else {}
