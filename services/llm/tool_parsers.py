"""Which of vLLM's parsers reads a model's tool calls, told by the model's own files.

A model writes a call as its chat template taught it, so the template says which parser fits, but for families that
write alike and are told apart by their `model_type`. The pairs are those of vLLM's page on tool calling
(docs.vllm.ai, features/tool_calling) for the parsers in `vllm/tool_parsers/__init__.py`.
"""

import json
from pathlib import Path
from typing import Any

# Whatever the template holds.
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
# The first whose marks are all in the template.
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
# For a model that knows no tools. A forced call is held to its form by a constraint, so that any model can make one;
# vLLM does without neither a parser nor the choice of the model's for that.
ANY = "hermes"


def tool_arguments(folder: Path) -> dict[str, Any]:
    """vLLM's arguments for the tool calls of the model in `folder`.

    Calls that a client forces work with every model. By its own choice only one calls whose template tells it of tools.
    """
    template = chat_template(folder)
    knows = "tools" in template
    parser = (BY_MODEL_TYPE.get(_model_type(folder)) or _by_template(template)) if knows else None
    return {"tool_call_parser": parser or ANY, "enable_auto_tool_choice": True}


def chat_template(folder: Path) -> str:
    """Every chat template that the model brings, one after the other; empty when it has none."""
    templates = [file.read_text(encoding="utf-8") for file in sorted(folder.glob("*chat_template*.jinja"))]
    for name in ("chat_template.json", "tokenizer_config.json"):
        found = _json(folder / name).get("chat_template")
        if isinstance(found, str):
            templates.append(found)
        elif isinstance(found, list):  # several by name: default, tool_use, ...
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
