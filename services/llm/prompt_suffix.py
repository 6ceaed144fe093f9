"""How a chat's prompt ends: with the opening of a new answer, with nothing, or in the middle of the last message.

`add_generation_prompt` and `continue_final_message` are vLLM's additions to OpenAI's fields, by vLLM's names, defaults
and rules. The gateway goes on with a broken stream by them: the answer so far is the last message, to be continued.
"""

from collections.abc import Mapping
from typing import Any

from kit.errors import InvalidRequest
from services.llm.options import flag

FIELD = "continue_final_message"


def read_ending(body: Mapping[str, Any]) -> dict[str, bool]:
    """The two switches of a chat's body, as `apply_chat_template` takes them.

    Raises InvalidRequest when both are asked for: a message cannot go on after another one was opened.
    """
    ending = {"add_generation_prompt": flag(body, "add_generation_prompt", True), FIELD: flag(body, FIELD)}
    if all(ending.values()):
        raise InvalidRequest(
            "continue_final_message goes on with the last message, and add_generation_prompt, which is true by "
            "default, opens a new one. Send add_generation_prompt: false too.",
            param=FIELD,
        )
    return ending


class EndingAsAsked:
    """A processor or tokenizer whose chats end as one request asks; else it is the one that it was given.

    Transformers' handlers always open a new answer, and have no switch for it.
    """

    def __init__(self, processor: Any, ending: Mapping[str, bool]) -> None:
        self._processor = processor
        self._ending = ending

    def __getattr__(self, name: str) -> Any:
        """What this class does not have is the processor's."""
        return getattr(self._processor, name)

    def apply_chat_template(self, messages: Any, **arguments: Any) -> Any:
        """The processor's own, with the prompt's end replaced."""
        return self._processor.apply_chat_template(messages, **{**arguments, **self._ending})
