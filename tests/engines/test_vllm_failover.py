"""Two vLLM servers behind the gateway; one is killed during a stream."""

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
# Events with text before the kill, and length of the response in tokens.
CUT, TOKENS = 8, 48


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Program]]:
    """vLLM's server with the same model as the shared service."""
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


async def test_stream_continues_on_another_server_after_a_kill(
    text: VllmService, server: tuple[str, Program], tmp_path: Path
) -> None:
    """kill -9 in the middle of a stream: one id, one role, one finish, one [DONE], every token counted once.

    The shared service is drained until then, so that the other server is the one that is killed.
    """
    url, program = server
    body = {
        "model": "qwen",
        "messages": [{"role": "user", "content": "Write about the sea."}],
        "max_tokens": TOKENS,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    # A busy machine may take long for a token.
    timeout = httpx2.Timeout(LOADED_WITHIN_S)
    # Two backends of one model, which one of them serves under another name.
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
        # Approximate: an event of vLLM may have two tokens, and the split text may be tokenized differently.
        reported = chunks[-1]["usage"]
        assert abs(reported["completion_tokens"] - TOKENS) <= 2
        assert abs(reported["prompt_tokens"] - usage["prompt_tokens"]) <= 2
        assert (ours.engine, plain.engine) == ("vllm", "vllm")
        assert ours.traffic.outcomes["http_200"] == 1
