"""What the transformers engine tells of its work, under the names by which the gateway reads vLLM's."""

from collections.abc import Sequence

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from services.llm.token_metrics import TokenMetrics

LABELS = {"model_name": "tiny", "engine": "0"}


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


def test_the_prompt_counts_when_the_first_token_comes(registry: CollectorRegistry) -> None:
    """Not when the request does, nor with the empty hand by which a runner tells that it begins."""
    taken: list[int] = []

    def take(tokens: Sequence[int]) -> None:
        taken.extend(tokens)

    follow = TokenMetrics(registry, model="tiny").follow(7, take)
    told = []
    for tokens in ([], [1], [2, 3]):
        follow(tokens)
        names = ("vllm:prompt_tokens_total", "vllm:generation_tokens_total")
        told.append(tuple(registry.get_sample_value(name, LABELS) for name in names))
    assert told == [(0, 0), (7, 1), (7, 3)]
    assert taken == [1, 2, 3]


@pytest.mark.parametrize(("in_flight", "running", "waiting"), [(0, 0, 0), (2, 2, 0), (4, 4, 0), (7, 4, 3)])
def test_who_has_no_place_waits(registry: CollectorRegistry, in_flight: int, running: int, waiting: int) -> None:
    TokenMetrics(registry, model="tiny").watch_requests(lambda: in_flight, places=4)
    assert registry.get_sample_value("vllm:num_requests_running", LABELS) == running
    assert registry.get_sample_value("vllm:num_requests_waiting", LABELS) == waiting


def test_every_count_is_there_before_the_first_request(registry: CollectorRegistry) -> None:
    """The gateway sees progress as a change of what was there."""
    TokenMetrics(registry, model="tiny")
    page = generate_latest(registry).decode()
    for name in ("vllm:prompt_tokens_total", "vllm:generation_tokens_total", "transformers_layers_total"):
        assert f'{name}{{engine="0",model_name="tiny"}} 0.0' in page
