"""Metrics of the transformers engine under vLLM's names, as read by the gateway."""

from collections.abc import Sequence

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from services.llm.transformers.token_metrics import TokenMetrics

LABELS = {"model_name": "tiny", "engine": "0"}


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


def test_prompt_is_counted_with_the_first_token(registry: CollectorRegistry) -> None:
    """Not at the start, when the runner reports no tokens."""
    taken: list[int] = []

    def take(tokens: Sequence[int]) -> None:
        taken.extend(tokens)

    follow = TokenMetrics(registry, model="tiny").follow(7, take)
    samples = []
    for tokens in ([], [1], [2, 3]):
        follow(tokens)
        names = ("vllm:prompt_tokens_total", "vllm:generation_tokens_total")
        samples.append(tuple(registry.get_sample_value(name, LABELS) for name in names))
    assert samples == [(0, 0), (7, 1), (7, 3)]
    assert taken == [1, 2, 3]


@pytest.mark.parametrize(("in_flight", "running", "waiting"), [(0, 0, 0), (2, 2, 0), (4, 4, 0), (7, 4, 3)])
def test_requests_beyond_the_slots_are_waiting(
    registry: CollectorRegistry, in_flight: int, running: int, waiting: int
) -> None:
    TokenMetrics(registry, model="tiny").watch_requests(lambda: in_flight, slots=4)
    assert registry.get_sample_value("vllm:num_requests_running", LABELS) == running
    assert registry.get_sample_value("vllm:num_requests_waiting", LABELS) == waiting


def test_every_counter_is_exported_from_the_start(registry: CollectorRegistry) -> None:
    """The gateway detects progress as a change of a value."""
    TokenMetrics(registry, model="tiny")
    page = generate_latest(registry).decode()
    for name in ("vllm:prompt_tokens_total", "vllm:generation_tokens_total", "transformers_layers_total"):
        assert f'{name}{{engine="0",model_name="tiny"}} 0.0' in page
