"""The OpenAI client with the transformers engine and SmolLM2."""

import concurrent.futures
from typing import Any

import httpx2
import openai
import pytest
from openai.types.chat import ChatCompletion

from tests.services.llm.typed import check_every_format

pytestmark = pytest.mark.engines

JAPAN: list[Any] = [{"role": "user", "content": "What is the capital of Japan?"}]
COUNT: list[Any] = [{"role": "user", "content": "Count from one to five."}]
MODEL = "tiny"


def test_models_are_listed_under_every_name(client: openai.OpenAI) -> None:
    (model,) = client.models.list()
    assert model.id == "tiny"
    assert model.model_dump()["max_model_len"] > 0
    assert client.models.retrieve("org/tiny").id == "org/tiny"


@pytest.mark.parametrize("name", ["tiny", "small", "org/tiny"])
def test_every_name_is_accepted_and_the_response_has_the_catalogue_name(client: openai.OpenAI, name: str) -> None:
    answer = client.chat.completions.create(model=name, messages=JAPAN, temperature=0)
    assert "Tokyo" in (answer.choices[0].message.content or "")
    assert answer.model == "tiny"
    assert answer.id.startswith("chatcmpl-")
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_stream_equals_the_whole_response_without_usage(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model=MODEL, messages=JAPAN, temperature=0)
    chunks = list(client.chat.completions.create(model=MODEL, messages=JAPAN, temperature=0, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert len({chunk.id for chunk in chunks}) == 1
    assert not any(chunk.usage for chunk in chunks)


def test_requested_usage_is_the_last_chunk(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model=MODEL, messages=JAPAN, temperature=0)
    stream = client.chat.completions.create(
        model=MODEL, messages=JAPAN, temperature=0, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert not any(chunk.usage for chunk in chunks[:-1])


def test_token_limit_gives_finish_reason_length(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=COUNT, temperature=0, max_tokens=3)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 3


@pytest.mark.parametrize("stream", [False, True])
def test_stop_string_ends_the_response_and_is_dropped(client: openai.OpenAI, stream: bool) -> None:
    asked: dict[str, Any] = {"model": MODEL, "messages": JAPAN, "temperature": 0, "stop": ["Tokyo"]}
    if stream:
        text = "".join(
            chunk.choices[0].delta.content or "" for chunk in client.chat.completions.create(**asked, stream=True)
        )
    else:
        answer = client.chat.completions.create(**asked)
        assert answer.choices[0].finish_reason == "stop"
        text = answer.choices[0].message.content or ""
    assert text.startswith("The capital")
    assert "Tok" not in text


def test_seed_determines_the_response(client: openai.OpenAI) -> None:
    def ask(seed: int) -> str | None:
        answer = client.chat.completions.create(model=MODEL, messages=COUNT, temperature=1.5, seed=seed, max_tokens=20)
        return answer.choices[0].message.content

    assert ask(1) == ask(1)
    assert ask(1) != ask(2)


def test_requests_of_a_batch_keep_their_sampling_options(client: openai.OpenAI) -> None:
    """Concurrent requests give the same responses as single ones."""
    kinds: list[dict[str, Any]] = [
        {"temperature": 0},
        {"temperature": 1.5, "seed": 5},
        {"temperature": 0, "frequency_penalty": 2.0},
        {"temperature": 0.8, "top_p": 0.5, "seed": 9, "extra_body": {"top_k": 20}},
    ]

    def ask(kind: dict[str, Any]) -> str | None:
        answer: ChatCompletion = client.chat.completions.create(model=MODEL, messages=COUNT, max_tokens=12, **kind)
        return answer.choices[0].message.content

    alone = [ask(kind) for kind in kinds]
    with concurrent.futures.ThreadPoolExecutor(len(kinds)) as pool:
        together = list(pool.map(ask, kinds))
    assert together == alone


def test_logit_bias_suppresses_a_word(client: openai.OpenAI, raw: httpx2.Client) -> None:
    tokens = raw.post("/tokenize", json={"prompt": " Tokyo"}).json()["tokens"]
    answer = client.chat.completions.create(
        model=MODEL, messages=JAPAN, temperature=0, max_tokens=12, logit_bias={str(token): -100 for token in tokens}
    )
    assert " Tokyo" not in (answer.choices[0].message.content or "")


def test_completions_whole_and_streamed(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": MODEL, "prompt": "The capital of Japan is", "temperature": 0, "max_tokens": 4}
    whole = client.completions.create(**asked)
    assert "Tokyo" in whole.choices[0].text
    assert whole.id.startswith("cmpl-")
    chunks = list(client.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == whole.choices[0].text
    assert chunks[-1].usage == whole.usage


def test_responses_whole_and_streamed(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": MODEL, "input": "What is the capital of Japan?", "temperature": 0}
    whole = client.responses.create(**asked)
    assert "Tokyo" in whole.output_text
    assert (whole.status, whole.model) == ("completed", "tiny")
    assert whole.usage is not None
    events = list(client.responses.create(**asked, stream=True))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == whole.output_text
    assert events[0].type == "response.created"
    assert events[-1].type == "response.completed"


def test_every_format_matches_the_client_types(raw: httpx2.Client) -> None:
    check_every_format(raw)


def test_truncated_response_is_incomplete(client: openai.OpenAI) -> None:
    answer = client.responses.create(model=MODEL, input="Count to one hundred.", temperature=0, max_output_tokens=3)
    assert answer.status == "incomplete"
    assert answer.incomplete_details is not None
    assert answer.incomplete_details.reason == "max_output_tokens"


@pytest.mark.parametrize(
    ("what", "asked"),
    [
        ("forced tool calls", {"tool_choice": "required"}),
        ("n above 1", {"n": 2}),
        ("log probabilities", {"logprobs": True, "top_logprobs": 2}),
        ("JSON by schema", {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}}),
    ],
)
def test_unsupported_features_are_rejected_by_name(client: openai.OpenAI, what: str, asked: dict[str, Any]) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model=MODEL, messages=JAPAN, **asked)
    assert refused.value.param in asked
    pytest.skip(f"the transformers engine does not support {what} for this model: {refused.value.message}")


def test_errors_map_to_the_client_classes(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        client.chat.completions.create(model="gpt-9", messages=JAPAN)
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.chat.completions.create(model=MODEL, messages=JAPAN, temperature=9)
    with pytest.raises(openai.BadRequestError, match="at least one message"):
        client.chat.completions.create(model=MODEL, messages=[])
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "word " * 9000}])
    assert refused.value.code == "context_length_exceeded"


def test_excess_clients_get_a_429(client: openai.OpenAI) -> None:
    """Four run, four wait, the others get a 429; there are no other errors."""

    def ask(number: int) -> str:
        try:
            answer = client.chat.completions.create(
                model=MODEL, messages=JAPAN, temperature=0, max_tokens=30, extra_body={"ignore_eos": True}
            )
        except openai.RateLimitError as busy:
            return "busy" if int(busy.response.headers["retry-after"]) >= 1 else "busy without a time"
        return "right" if "Tokyo" in (answer.choices[0].message.content or "") else "wrong"

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        outcomes = list(pool.map(ask, range(16)))
    assert outcomes.count("right") >= 8
    assert outcomes.count("right") + outcomes.count("busy") == 16
