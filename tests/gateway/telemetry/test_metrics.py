"""Prometheus metrics of relayed requests."""

from tests.gateway.conftest import StartBackend, StartGateway

TTFT = "gateway_time_to_first_token_seconds_count"


async def test_time_to_first_token_is_counted_by_served_model(
    start_backend: StartBackend, start_gateway: StartGateway
) -> None:
    """Only streamed responses that succeed."""
    tiny = await start_backend("llm-secondary", model="tinyllama")
    gateway = await start_gateway(await start_backend(aliases="fast"), tiny)
    value = gateway.context.metrics.registry.get_sample_value
    await gateway.chat("qwen", stream=True)
    await gateway.chat("fast", stream=True)
    await gateway.chat("qwen")
    tiny.switches.fail_rate = 1.0
    await gateway.chat("tinyllama", stream=True)
    assert value(TTFT, {"model": "qwen"}) == 2
    assert value(TTFT, {"model": "tinyllama"}) is None
    tiny.switches.fail_rate = 0.0
    await gateway.chat("tinyllama", stream=True)
    assert value(TTFT, {"model": "tinyllama"}) == 1
    assert (await gateway.http.get("/metrics")).text.count(f"{TTFT}{{") == 2
