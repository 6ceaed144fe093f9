"""End of a chat's prompt: validation, and continuation with a real model."""

from typing import Any

import httpx2
import openai
import pytest

from kit.errors import InvalidRequest
from services.llm.validation import requests
from services.llm.validation.prompt_suffix import PromptSuffixOverride, read_prompt_suffix

CONTINUE: dict[str, Any] = {"continue_final_message": True, "add_generation_prompt": False}
JAPAN: list[Any] = [{"role": "user", "content": "What is the capital of Japan?"}]
MODEL = "tiny"


@pytest.mark.parametrize(
    ("body", "opens", "continues"),
    [
        ({}, True, False),
        ({"continue_final_message": None, "add_generation_prompt": None}, True, False),
        ({"continue_final_message": False}, True, False),
        ({"add_generation_prompt": False}, False, False),
        (CONTINUE, False, True),
    ],
)
def test_default_suffix_opens_an_assistant_message(body: dict[str, Any], opens: bool, continues: bool) -> None:
    suffix = {"add_generation_prompt": opens, "continue_final_message": continues}
    assert read_prompt_suffix(body) == suffix
    assert requests.chat({"messages": JAPAN, **body}, requests.Capabilities()).body["prompt_suffix"] == suffix


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"continue_final_message": True}, "add_generation_prompt: false"),
        ({"continue_final_message": True, "add_generation_prompt": True}, "add_generation_prompt: false"),
        ({"continue_final_message": "yes"}, "true or false"),
        ({"add_generation_prompt": 0}, "true or false"),
    ],
)
def test_contradictory_suffix_is_rejected(body: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        read_prompt_suffix(body)


class Processor:
    """Returns its arguments."""

    name = "processor"

    def apply_chat_template(self, messages: Any, **arguments: Any) -> dict[str, Any]:
        return {"messages": messages, **arguments}


def test_override_replaces_only_the_suffix() -> None:
    processor = PromptSuffixOverride(Processor(), read_prompt_suffix(CONTINUE))
    written = processor.apply_chat_template([1], add_generation_prompt=True, tokenize=True)
    assert written == {"messages": [1], "tokenize": True, **CONTINUE}
    assert processor.name == "processor"


@pytest.mark.engines
@pytest.mark.parametrize("stream", [False, True])
def test_interrupted_response_is_continued(client: openai.OpenAI, stream: bool) -> None:
    def ask(messages: list[Any], **extra: Any) -> str:
        asked: dict[str, Any] = {"model": MODEL, "messages": messages, "temperature": 0, "max_tokens": 20, **extra}
        if not stream:
            return client.chat.completions.create(**asked).choices[0].message.content or ""
        chunks = client.chat.completions.create(**asked, stream=True)
        return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)

    whole = ask(JAPAN)
    begun, word, _ = whole.partition(" Tokyo")
    assert word, whole
    rest = ask([*JAPAN, {"role": "assistant", "content": begun}], extra_body=CONTINUE)
    # The same tokens, in a prompt and one by one: in bfloat16 a late word may differ.
    assert (begun + rest)[: len(begun + word)] == begun + word


@pytest.mark.engines
def test_continued_prompt_has_no_closing_tokens(raw: httpx2.Client) -> None:
    """Neither the end of the last message nor the start of the next one."""
    messages = [*JAPAN, {"role": "assistant", "content": "The capital of"}]

    def tokens(**suffix: bool) -> list[int]:
        found: list[int] = raw.post("/tokenize", json={"messages": messages, **suffix}).json()["tokens"]
        return found

    opened, closed, continued = tokens(), tokens(add_generation_prompt=False), tokens(**CONTINUE)
    assert len(continued) < len(closed) < len(opened)
    assert closed[: len(continued)] == continued
    assert raw.post("/detokenize", json={"tokens": continued}).json()["prompt"].endswith("The capital of")
