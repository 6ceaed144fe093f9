"""The fake backend itself: what other tests rely on when they count tokens."""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.gateway.conftest import StartBackend
from tests.gateway.running import HANG_S
from tests.support.backends.responses import tokens_of

ROOT = Path(__file__).resolve().parents[3]
USER = {"role": "user", "content": "Hi"}


async def ask(url: str, body: dict[str, Any], path: str = "/v1/chat/completions") -> httpx2.Response:
    """One request to it, past no gateway."""
    async with httpx2.AsyncClient(trust_env=False, verify=False, timeout=HANG_S) as client:
        return await client.post(url + path, json=body)


@pytest.mark.parametrize("said", [0, 1, 3, 6])
async def test_continued_chat_gets_the_missing_tokens(start_backend: StartBackend, said: int) -> None:
    """The text so far counts as prompt."""
    backend = await start_backend(tokens=6, marked=True)
    whole = (await ask(backend.url, {"messages": [USER]})).json()
    text = whole["choices"][0]["message"]["content"]
    begun = {"role": "assistant", "content": "".join(text.partition(f"token{said}")[:1])}
    rest = {"messages": [USER, begun], "continue_final_message": True, "add_generation_prompt": False, "stream": True}
    answer = await ask(backend.url, rest | {"stream_options": {"include_usage": True}})
    assert list(tokens_of(answer.content)) == list(range(said, 6))
    *_, usage, done, end = answer.text.split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    assert json.loads(usage.removeprefix("data: "))["usage"] == {
        "prompt_tokens": whole["usage"]["prompt_tokens"] + said,
        "completion_tokens": 6 - said,
        "total_tokens": whole["usage"]["total_tokens"],
    }


async def test_continued_completion_gets_the_missing_tokens(start_backend: StartBackend) -> None:
    """Up to max_tokens."""
    backend = await start_backend(tokens=9)
    answer = await ask(backend.url, {"prompt": "Once token0 token1 ", "max_tokens": 3}, "/v1/completions")
    choice = answer.json()["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("token2 token3 token4 ", "length")


async def test_wrong_continuation_gets_400(start_backend: StartBackend) -> None:
    """A text with a lost token or of another prompt, and vLLM's two flags together."""
    backend = await start_backend(marked=True)
    flags = {"continue_final_message": True, "add_generation_prompt": False}
    for text in ("token1 ", "token0 token2 ", "token0.00000000 "):
        messages = [USER, {"role": "assistant", "content": text}]
        assert (await ask(backend.url, {"messages": messages, **flags})).status_code == 400
    both = {"messages": [USER, {"role": "assistant", "content": ""}], "continue_final_message": True}
    assert (await ask(backend.url, both)).status_code == 400


async def test_crash_on_text_ends_the_program() -> None:
    command = [sys.executable, "-m", "bench.backend", "--model", "qwen", "--crash-on", "boom"]
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=asyncio.subprocess.PIPE)
    try:
        assert process.stdout is not None
        line = await asyncio.wait_for(process.stdout.readline(), HANG_S)
        url = line.decode().split()[-1]
        assert (await ask(url, {"messages": [USER]})).status_code == 200
        with pytest.raises(httpx2.HTTPError):
            await ask(url, {"messages": [{"role": "user", "content": "boom"}]})
        assert await asyncio.wait_for(process.wait(), HANG_S) == 1
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
