"""Validation of request bodies for the transformers engine. No I/O.

Unknown fields, and fields that change nothing, are ignored, as in vLLM. Unsupported fields that would change the
response are rejected by name.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic_core import from_json

from kit.errors import InvalidRequest
from services.llm.validation.messages import read_messages
from services.llm.validation.options import Options, Sampling, flag, integer, read_options, shown
from services.llm.validation.prompt_suffix import read_prompt_suffix
from services.llm.validation.responses_input import read_input
from services.llm.validation.tool_choice import is_call_demanded, no_tool_calling

UNSUPPORTED = "The transformers engine does not support this; use a service with the vLLM engine."


@dataclass(frozen=True)
class Capabilities:
    """Capabilities and sampling defaults of the loaded model."""

    model: str = ""
    images: bool = False
    tools: bool = False
    defaults: Sampling = field(default_factory=Sampling)


@dataclass(frozen=True)
class Work:
    """A validated request: its model, the body for transformers' handler, generation and streaming options."""

    model: str | None
    body: dict[str, Any]
    options: Options
    stream: bool
    include_usage: bool = False
    # The request offers tools, and the model cannot call them.
    ignores_tools: bool = False


def parse(content: bytes) -> dict[str, Any]:
    """Parse a body, which must be a JSON object. Raises InvalidRequest.

    Stricter than `json`: NaN and lone surrogates, which a response could not repeat, are rejected.
    """
    try:
        body = from_json(content, allow_inf_nan=False)
    except ValueError as error:
        raise InvalidRequest(f"The body is not JSON: {error}.") from error
    if not isinstance(body, dict):
        raise InvalidRequest("The body must be a JSON object.")
    return body


def chat(body: Mapping[str, Any], capabilities: Capabilities) -> Work:
    """Read a body of `/v1/chat/completions`. Raises InvalidRequest that names the field."""
    # The older form of tools.
    ignores_functions = bool(body.get("functions")) and not capabilities.tools
    _reject_unsupported({**body, "functions": None} if ignores_functions else body, CHAT_LIMITS)
    stream, include_usage = _streaming(body)
    tools, ignores_tools = _tools(body, capabilities)
    clean: dict[str, Any] = {
        "messages": read_messages(body.get("messages"), images=capabilities.images),
        "chat_template_kwargs": template_arguments(body.get("chat_template_kwargs")),
        "prompt_suffix": read_prompt_suffix(body),
        "stream": True,
    }
    if tools:
        clean["tools"] = tools
    options = read_options(body, capabilities.defaults, "max_completion_tokens", "max_tokens")
    return Work(model_name(body), clean, options, stream, include_usage, ignores_tools or ignores_functions)


def completion(body: Mapping[str, Any], capabilities: Capabilities) -> Work:
    """Read a body of `/v1/completions`. Raises InvalidRequest that names the field."""
    _reject_unsupported(body, COMPLETION_LIMITS)
    stream, include_usage = _streaming(body)
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str):
        prompt = prompt[0]
    if isinstance(prompt, list) and prompt:
        raise InvalidRequest(f"prompt must be one string. {UNSUPPORTED}", param="prompt")
    if not isinstance(prompt, str) or not prompt:
        raise InvalidRequest("prompt must be a non-empty string.", param="prompt")
    options = read_options(body, capabilities.defaults, "max_tokens")
    if options.max_tokens is None:
        # OpenAI's default for this route; a bare completion would not end by itself.
        options = read_options({**body, "max_tokens": 16}, capabilities.defaults, "max_tokens")
    return Work(model_name(body), {"prompt": prompt, "stream": True}, options, stream, include_usage)


def response(body: Mapping[str, Any], capabilities: Capabilities) -> Work:
    """Read a body of `/v1/responses`. Raises InvalidRequest that names the field."""
    _reject_unsupported(body, RESPONSE_LIMITS)
    tools, ignores_tools = _tools(body, capabilities)
    instructions = body.get("instructions")
    if instructions is not None and not isinstance(instructions, str):
        raise InvalidRequest("instructions must be a string.", param="instructions")
    _check_echoed_fields(body)
    clean: dict[str, Any] = {
        "input": read_input(body.get("input"), images=capabilities.images),
        "chat_template_kwargs": template_arguments(body.get("chat_template_kwargs")),
        "stream": True,
    }
    if instructions:
        clean["instructions"] = instructions
    if tools:
        clean["tools"] = tools
    options = read_options(body, capabilities.defaults, "max_output_tokens")
    return Work(model_name(body), clean, options, flag(body, "stream"), ignores_tools=ignores_tools)


def model_name(body: Mapping[str, Any]) -> str | None:
    """Return the field `model`, if present."""
    model = body.get("model")
    if model is not None and not isinstance(model, str):
        raise InvalidRequest(f"model must be a string, not {shown(model)}.", param="model")
    return model


def template_arguments(value: object) -> dict[str, Any]:
    """Return arguments for the model's chat template, such as `enable_thinking`; values must be JSON scalars.

    Raises InvalidRequest for names of `apply_chat_template`'s own parameters, which could replace the template.
    """
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InvalidRequest("chat_template_kwargs must be an object.", param="chat_template_kwargs")
    for key, argument in value.items():
        if key in TEMPLATE_PARAMETERS or not key.isidentifier() or isinstance(argument, list | dict):
            raise InvalidRequest(f"chat_template_kwargs.{key} is not supported.", param="chat_template_kwargs")
    return dict(value)


TEMPLATE_PARAMETERS = frozenset(
    {
        "self", "conversation", "chat_template", "tools", "documents", "add_generation_prompt", "messages",
        "continue_final_message", "tokenize", "padding", "truncation", "max_length", "return_tensors", "return_dict",
        "return_assistant_tokens_mask", "tokenizer_kwargs", "processor_kwargs", "kwargs", "load_audio_from_video",
        "num_frames", "video_fps", "sampling_rate", "template_kwargs", "images", "videos", "audio", "text",
    }
)  # fmt: skip


def _check_echoed_fields(body: Mapping[str, Any]) -> None:
    """Reject fields that a response repeats, if OpenAI's clients could not parse them."""
    metadata, user = body.get("metadata"), body.get("user")
    texts = isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())
    if metadata is not None and not texts:
        raise InvalidRequest("metadata must map names to strings.", param="metadata")
    if user is not None and not isinstance(user, str):
        raise InvalidRequest(f"user must be a string, not {shown(user)}.", param="user")


def _streaming(body: Mapping[str, Any]) -> tuple[bool, bool]:
    stream = flag(body, "stream")
    options = body.get("stream_options")
    if options is None:
        return stream, False
    if not isinstance(options, dict):
        raise InvalidRequest("stream_options must be an object.", param="stream_options")
    if not stream:
        raise InvalidRequest("stream_options requires stream: true.", param="stream_options")
    return stream, flag(options, "include_usage")


def _tools(body: Mapping[str, Any], capabilities: Capabilities) -> tuple[list[dict[str, Any]], bool]:
    """Return the tools for the chat template, and whether tools that the model may call are ignored.

    Front ends send tools with every chat, whatever the model: one without tool calling responds without a call, as
    `auto` permits. Raises InvalidRequest if a call is demanded.
    """
    choice, tools = body.get("tool_choice"), body.get("tools")
    if is_call_demanded(choice) and not capabilities.tools:
        raise no_tool_calling(capabilities.model)
    if choice not in (None, "auto", "none") and capabilities.tools:
        raise InvalidRequest(f"tool_choice {shown(choice)} is not supported. {UNSUPPORTED}", param="tool_choice")
    if not tools or choice == "none":
        return [], False
    if not isinstance(tools, list):
        raise InvalidRequest("tools must be a list.", param="tools")
    for index, tool in enumerate(tools):
        kind = tool.get("type") if isinstance(tool, dict) else None
        if not isinstance(kind, str) or (capabilities.tools and kind != "function"):
            raise InvalidRequest(f"tools.{index} must be of type function, not {shown(kind)}.", param="tools")
        function = tool.get("function") or tool
        if kind == "function" and not (isinstance(function, dict) and isinstance(function.get("name"), str)):
            raise InvalidRequest(f"tools.{index} must have a function with a name.", param="tools")
    return ([_without_nulls(tool) for tool in tools], False) if capabilities.tools else ([], True)


def _without_nulls(tool: dict[str, Any]) -> dict[str, Any]:
    """Return a tool without fields that are null, which templates would print; its schema is not changed."""
    given = {name: value for name, value in tool.items() if value is not None}
    function = given.get("function")
    if isinstance(function, dict):
        given["function"] = {name: value for name, value in function.items() if value is not None}
    return given


Check = Callable[[Any], bool]


def _reject_unsupported(body: Mapping[str, Any], limits: Mapping[str, Check]) -> None:
    """Raise InvalidRequest for the first field with an unsupported value."""
    for name, harmless in limits.items():
        value = body.get(name)
        if value is not None and not harmless(value):
            raise InvalidRequest(f"{name} {shown(value)} is not supported. {UNSUPPORTED}", param=name)
    integer(body, "n", 1, 1, 1)


def _is(*values: Any) -> Check:
    # In Python 1 == True.
    return lambda value: any(
        value == allowed and isinstance(value, bool) == isinstance(allowed, bool) for allowed in values
    )


def _empty(value: Any) -> bool:
    return not value


def _plain_text(value: Any) -> bool:
    return isinstance(value, dict) and (value.get("type") or "text") == "text"


# vLLM's structured outputs; Hugging Face clients send `grammar`.
_CONSTRAINTS: dict[str, Check] = dict.fromkeys(
    ("structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar", "grammar"), _empty
)
CHAT_LIMITS: Mapping[str, Check] = {
    "n": _is(1),
    "best_of": _is(1),
    "logprobs": _is(False, 0),
    "top_logprobs": _is(0),
    "prompt_logprobs": _is(0),
    "response_format": _plain_text,
    "modalities": _is(["text"]),
    "audio": _empty,
    "prediction": _empty,
    "functions": _empty,
    "function_call": _is("none", "auto"),
    "web_search_options": lambda _: False,
    "use_beam_search": _is(False),
    "echo": _is(False),
    "chat_template": lambda _: False,
    "documents": _empty,
    **_CONSTRAINTS,
}
COMPLETION_LIMITS: Mapping[str, Check] = {
    "n": _is(1),
    "best_of": _is(1),
    "logprobs": lambda _: False,
    "prompt_logprobs": lambda _: False,
    "echo": _is(False),
    "suffix": _empty,
    "response_format": _plain_text,
    "use_beam_search": _is(False),
    **_CONSTRAINTS,
}
RESPONSE_LIMITS: Mapping[str, Check] = {
    "background": _is(False),
    "previous_response_id": _empty,
    "conversation": _empty,
    "prompt": _empty,
    "include": _empty,
    "top_logprobs": _is(0),
    "text": lambda value: isinstance(value, dict) and _plain_text(value.get("format") or {}),
    "truncation": _is("disabled"),
    **_CONSTRAINTS,
}
