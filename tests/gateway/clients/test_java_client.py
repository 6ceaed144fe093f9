"""The JDK's HttpClient through the gateway: its `Upgrade: h2c` is ignored."""

from tests.gateway.conftest import StartBackend, StartGateway
from tests.support.clients.java import needs_java, ok, run_flows


@needs_java
async def test_flows(start_backend: StartBackend, start_gateway: StartGateway) -> None:
    """HEAD, models, a chat, a stream, embeddings with a length and chunked, a form with and without 100-continue."""
    gateway = await start_gateway(
        await start_backend(),
        await start_backend("embedding", model="minilm", kind="embedding"),
        await start_backend("transcription", model="whisper", kind="transcription"),
    )
    flows = ("head", "models", "chat", "stream", "embeddings", "chunked", "transcription", "expect")
    found = await run_flows(**dict.fromkeys(flows, gateway.url))
    assert found["head"] == (200, "")
    assert {"qwen", "minilm", "whisper"} <= {model["id"] for model in ok(found, "models")["data"]}
    assert ok(found, "chat")["choices"][0]["message"]["content"].startswith("token0 token1")
    status, events = found["stream"]
    assert status == 200
    assert events.count("data: {") > 1
    assert events.rstrip("\\n").endswith("data: [DONE]")
    assert ok(found, "embeddings") == ok(found, "chunked")
    assert ok(found, "transcription") == ok(found, "expect")
