"""The JDK's HttpClient straight to the text service: its `Upgrade: h2c` is ignored."""

from tests.support.clients.java import needs_java, ok, run_flows


@needs_java
async def test_flows(smollm2_url: str) -> None:
    """HEAD, a chat, a stream."""
    found = await run_flows(head=smollm2_url, chat=smollm2_url, stream=smollm2_url)
    assert found["head"] == (200, "")
    assert ok(found, "chat")["choices"][0]["message"]["content"]
    status, events = found["stream"]
    assert status == 200
    assert "data: [DONE]" in events
