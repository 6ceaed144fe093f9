"""How a chat's prompt ends: the switches read, and a real model that goes on with its own answer."""

from typing import Any

import httpx2
import openai
import pytest

from kit.errors import InvalidRequest
from services.llm import requests
from services.llm.prompt_suffix import EndingAsAsked, read_ending

GO_ON: dict[str, Any] = {"continue_final_message": True, "add_generation_prompt": False}
JAPAN: list[Any] = [{"role": "user", "content": "What is the capital of Japan?"}]
MODEL = "tiny"


@pytest.mark.parametrize(
    ("body", "opens", "continues"),
    [
        ({}, True, False),
        ({"continue_final_message": None, "add_generation_prompt": None}, True, False),
        ({"continue_final_message": False}, True, False),
        ({"add_generation_prompt": False}, False, False),
        (GO_ON, False, True),
    ],
)
def test_a_prompt_ends_as_asked_and_with_an_open_answer_by_default(
    body: dict[str, Any], opens: bool, continues: bool
) -> None:
    ending = {"add_generation_prompt": opens, "continue_final_message": continues}
    assert read_ending(body) == ending
    assert requests.chat({"messages": JAPAN, **body}, requests.Ability()).body["ending"] == ending


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"continue_final_message": True}, "add_generation_prompt: false"),
        ({"continue_final_message": True, "add_generation_prompt": True}, "add_generation_prompt: false"),
        ({"continue_final_message": "yes"}, "true or false"),
        ({"add_generation_prompt": 0}, "true or false"),
    ],
)
def test_an_ending_that_cannot_be_is_refused(body: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        read_ending(body)


class Processor:
    """Says how it was called."""

    name = "processor"

    def apply_chat_template(self, messages: Any, **arguments: Any) -> dict[str, Any]:
        return {"messages": messages, **arguments}


def test_only_the_ending_of_what_a_handler_asks_for_is_replaced() -> None:
    processor = EndingAsAsked(Processor(), read_ending(GO_ON))
    written = processor.apply_chat_template([1], add_generation_prompt=True, tokenize=True)
    assert written == {"messages": [1], "tokenize": True, **GO_ON}
    assert processor.name == "processor"


@pytest.mark.engines
@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_was_cut_goes_on_where_it_was_cut(client: openai.OpenAI, stream: bool) -> None:
    def ask(messages: list[Any], **extra: Any) -> str:
        asked: dict[str, Any] = {"model": MODEL, "messages": messages, "temperature": 0, "max_tokens": 20, **extra}
        if not stream:
            return client.chat.completions.create(**asked).choices[0].message.content or ""
        chunks = client.chat.completions.create(**asked, stream=True)
        return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)

    whole = ask(JAPAN)
    begun, word, _ = whole.partition(" Tokyo")
    assert word, whole
    rest = ask([*JAPAN, {"role": "assistant", "content": begun}], extra_body=GO_ON)
    # The same tokens, in a prompt and one by one: in bfloat16 a late word may differ.
    assert (begun + rest)[: len(begun + word)] == begun + word


@pytest.mark.engines
def test_a_prompt_that_goes_on_is_the_shorter_one(raw: httpx2.Client) -> None:
    """By the end of the message and the opening of the next, which a continued answer must not have."""
    messages = [*JAPAN, {"role": "assistant", "content": "The capital of"}]

    def tokens(**ending: bool) -> list[int]:
        found: list[int] = raw.post("/tokenize", json={"messages": messages, **ending}).json()["tokens"]
        return found

    opened, closed, going_on = tokens(), tokens(add_generation_prompt=False), tokens(**GO_ON)
    assert len(going_on) < len(closed) < len(opened)
    assert closed[: len(going_on)] == going_on
    assert raw.post("/detokenize", json={"tokens": going_on}).json()["prompt"].endswith("The capital of")
