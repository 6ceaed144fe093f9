"""What each route takes from a body, for the transformers engine. Pure: from JSON to checked work or an error.

What is harmless is accepted and ignored, as are fields that nobody knows (as in vLLM). What would change the answer and
cannot be done here is refused by name: silence would be a wrong answer.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic_core import from_json

from kit.errors import InvalidRequest
from services.llm.messages import read_messages
from services.llm.options import Options, Sampling, flag, integer, read_options, shown
from services.llm.prompt_suffix import read_ending
from services.llm.responses_input import read_input

CANNOT = "The transformers engine of this service cannot do that; a service with the vLLM engine can."


@dataclass(frozen=True)
class Ability:
    """What the loaded model can do, and how it samples when a request does not say."""

    images: bool = False
    tools: bool = False
    defaults: Sampling = field(default_factory=Sampling)


@dataclass(frozen=True)
class Work:
    """One checked request: the model it names, the body for transformers' handler, and how to answer."""

    model: str | None
    body: dict[str, Any]
    options: Options
    stream: bool
    include_usage: bool = False


def parse(content: bytes) -> dict[str, Any]:
    """The JSON object in a request's body. Raises InvalidRequest.

    Strict, unlike Python's own parser: NaN and half of a surrogate pair are no JSON that an answer could repeat.
    """
    try:
        body = from_json(content, allow_inf_nan=False)
    except ValueError as error:
        raise InvalidRequest(f"The body is not JSON: {error}.") from error
    if not isinstance(body, dict):
        raise InvalidRequest("The body must be a JSON object.")
    return body


def chat(body: Mapping[str, Any], ability: Ability) -> Work:
    """Read a body of `/v1/chat/completions`. Raises InvalidRequest that names the field."""
    _refuse(body, CHAT_LIMITS)
    stream, include_usage = _streaming(body)
    tools = _tools(body, ability)
    clean: dict[str, Any] = {
        "messages": read_messages(body.get("messages"), images=ability.images),
        "chat_template_kwargs": template_arguments(body.get("chat_template_kwargs")),
        "ending": read_ending(body),
        "stream": True,
    }
    if tools:
        clean["tools"] = tools
    options = read_options(body, ability.defaults, "max_completion_tokens", "max_tokens")
    return Work(model_name(body), clean, options, stream, include_usage)


def completion(body: Mapping[str, Any], ability: Ability) -> Work:
    """Read a body of `/v1/completions`. Raises InvalidRequest that names the field."""
    _refuse(body, COMPLETION_LIMITS)
    stream, include_usage = _streaming(body)
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str):
        prompt = prompt[0]
    if isinstance(prompt, list) and prompt:
        raise InvalidRequest(f"prompt must be one string. {CANNOT}", param="prompt")
    if not isinstance(prompt, str) or not prompt:
        raise InvalidRequest("prompt must be a string with some text.", param="prompt")
    options = read_options(body, ability.defaults, "max_tokens")
    if options.max_tokens is None:
        # OpenAI's own default of this route; without one a bare completion runs on and on.
        options = read_options({**body, "max_tokens": 16}, ability.defaults, "max_tokens")
    return Work(model_name(body), {"prompt": prompt, "stream": True}, options, stream, include_usage)


def response(body: Mapping[str, Any], ability: Ability) -> Work:
    """Read a body of `/v1/responses`. Raises InvalidRequest that names the field."""
    _refuse(body, RESPONSE_LIMITS)
    tools = _tools(body, ability)
    instructions = body.get("instructions")
    if instructions is not None and not isinstance(instructions, str):
        raise InvalidRequest("instructions must be a string.", param="instructions")
    _check_repeated(body)
    clean: dict[str, Any] = {
        "input": read_input(body.get("input"), images=ability.images),
        "chat_template_kwargs": template_arguments(body.get("chat_template_kwargs")),
        "stream": True,
    }
    if instructions:
        clean["instructions"] = instructions
    if tools:
        clean["tools"] = tools
    options = read_options(body, ability.defaults, "max_output_tokens")
    return Work(model_name(body), clean, options, flag(body, "stream"))


def model_name(body: Mapping[str, Any]) -> str | None:
    """The model that a request names, if it names one."""
    model = body.get("model")
    if model is not None and not isinstance(model, str):
        raise InvalidRequest(f"model must be a string, not {shown(model)}.", param="model")
    return model


def template_arguments(value: object) -> dict[str, Any]:
    """Switches for the model's chat template (`enable_thinking`, say): JSON scalars under names of their own.

    Raises InvalidRequest for the names of `apply_chat_template`'s own parameters, which could replace the template.
    """
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InvalidRequest("chat_template_kwargs must be an object.", param="chat_template_kwargs")
    for key, argument in value.items():
        if key in TEMPLATE_PARAMETERS or not key.isidentifier() or isinstance(argument, list | dict):
            raise InvalidRequest(f"chat_template_kwargs.{key} is not taken.", param="chat_template_kwargs")
    return dict(value)


TEMPLATE_PARAMETERS = frozenset(
    {
        "self", "conversation", "chat_template", "tools", "documents", "add_generation_prompt", "messages",
        "continue_final_message", "tokenize", "padding", "truncation", "max_length", "return_tensors", "return_dict",
        "return_assistant_tokens_mask", "tokenizer_kwargs", "processor_kwargs", "kwargs", "load_audio_from_video",
        "num_frames", "video_fps", "sampling_rate", "template_kwargs", "images", "videos", "audio", "text",
    }
)  # fmt: skip


def _check_repeated(body: Mapping[str, Any]) -> None:
    """Refuse what a response would repeat and is not what OpenAI's clients read there."""
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
        raise InvalidRequest("stream_options is only for stream: true.", param="stream_options")
    return stream, flag(options, "include_usage")


def _tools(body: Mapping[str, Any], ability: Ability) -> list[dict[str, Any]]:
    choice = body.get("tool_choice")
    tools = body.get("tools")
    if choice not in (None, "auto", "none"):
        raise InvalidRequest(f"tool_choice {shown(choice)} would force a tool call. {CANNOT}", param="tool_choice")
    if not tools or choice == "none":
        return []
    if not isinstance(tools, list):
        raise InvalidRequest("tools must be a list.", param="tools")
    for index, tool in enumerate(tools):
        kind = tool.get("type") if isinstance(tool, dict) else None
        if not isinstance(tool, dict) or kind != "function":
            raise InvalidRequest(f"tools.{index} must be of type function, not {shown(kind)}.", param="tools")
        function = tool.get("function", tool)
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise InvalidRequest(f"tools.{index} must hold a function with a name.", param="tools")
    if not ability.tools:
        raise InvalidRequest("This model knows no tools. Send tool_choice none, or ask another model.", param="tools")
    return tools


Check = Callable[[Any], bool]


def _refuse(body: Mapping[str, Any], limits: Mapping[str, Check]) -> None:
    """Raise InvalidRequest for the first field that is set to something which cannot be done here."""
    for name, harmless in limits.items():
        value = body.get(name)
        if value is not None and not harmless(value):
            raise InvalidRequest(f"{name} {shown(value)} is not possible here. {CANNOT}", param=name)
    integer(body, "n", 1, 1, 1)


def _is(*values: Any) -> Check:
    # `1 == True` in Python, and neither stands for the other in a request.
    return lambda value: any(
        value == allowed and isinstance(value, bool) == isinstance(allowed, bool) for allowed in values
    )


def _empty(value: Any) -> bool:
    return not value


def _plain_text(value: Any) -> bool:
    return isinstance(value, dict) and value.get("type", "text") == "text"


# vLLM's ways to constrain an answer's form; a Hugging Face client has its own under `grammar`.
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
