"""End of a chat's prompt: a new assistant message, nothing, or the unfinished last message.

`add_generation_prompt` and `continue_final_message` are vLLM's additions to OpenAI's fields, with vLLM's names,
defaults and rules. The gateway resumes interrupted streams with them: the text so far is the last message.
"""

from collections.abc import Mapping
from typing import Any

from kit.errors import InvalidRequest
from services.llm.validation.options import flag

FIELD = "continue_final_message"


def read_prompt_suffix(body: Mapping[str, Any]) -> dict[str, bool]:
    """Return both fields of a chat's body as arguments of `apply_chat_template`.

    Raises InvalidRequest if both are true.
    """
    suffix = {"add_generation_prompt": flag(body, "add_generation_prompt", True), FIELD: flag(body, FIELD)}
    if all(suffix.values()):
        raise InvalidRequest(
            "continue_final_message and add_generation_prompt (true by default) exclude each other. Send "
            "add_generation_prompt: false.",
            param=FIELD,
        )
    return suffix


class PromptSuffixOverride:
    """A processor or tokenizer with one request's prompt suffix. Transformers' handlers have no option for it."""

    def __init__(self, processor: Any, suffix: Mapping[str, bool]) -> None:
        self._processor = processor
        self._suffix = suffix

    def __getattr__(self, name: str) -> Any:
        """Delegate to the processor."""
        return getattr(self._processor, name)

    def apply_chat_template(self, messages: Any, **arguments: Any) -> Any:
        """Apply the processor's template with the request's suffix."""
        return self._processor.apply_chat_template(messages, **{**arguments, **self._suffix})
