"""Choosing tokens, against distributions that can be worked out by hand."""

from collections import Counter
from typing import Any

import pytest

from services.llm.transformers.sampling import Sampler
from services.llm.validation.options import Sampling

pytestmark = pytest.mark.engines

# Probabilities 0.5, 0.25, 0.125, 0.125.
SCORES = [3.0, 2.0, 1.0, 1.0]
LN2 = 0.6931471805599453


def scores() -> Any:
    import torch

    return torch.tensor(SCORES) * LN2


def draw(count: int = 400, **options: Any) -> Counter[int]:
    """Return the first tokens of `count` new samplers."""
    return Counter(
        Sampler(Sampling(seed=seed, **options), prompt=[], ends=[]).choose(scores()) for seed in range(count)
    )


def test_temperature_zero_is_greedy() -> None:
    assert draw(20, temperature=0) == {0: 20}


def test_temperature_one_follows_the_probabilities() -> None:
    chosen = draw(2000)
    for token, share in enumerate((0.5, 0.25, 0.125, 0.125)):
        assert abs(chosen[token] / 2000 - share) < 0.05


@pytest.mark.parametrize(
    ("options", "possible"),
    [
        ({"top_k": 1}, {0}),
        ({"top_k": 2}, {0, 1}),
        ({"top_p": 0.4}, {0}),
        ({"top_p": 0.6}, {0, 1}),
        ({"top_p": 0.01}, {0}),
        ({"top_p": 0}, {0}),
        ({"min_p": 0.4}, {0, 1}),
        ({"min_p": 1.0}, {0}),
        ({"top_k": 3, "top_p": 0.6}, {0, 1}),
        ({"logit_bias": {0: -100.0}}, {1, 2, 3}),
        ({"logit_bias": {3: 100.0, 99: 5.0}}, {3}),
        ({"temperature": 2.0}, {0, 1, 2, 3}),
    ],
)
def test_only_allowed_tokens_are_sampled(options: dict[str, Any], possible: set[int]) -> None:
    assert set(draw(**options)) == possible


@pytest.mark.parametrize(
    "penalty", [{"presence_penalty": 2.0}, {"frequency_penalty": 2.0}, {"repetition_penalty": 9.0}]
)
def test_penalties_reduce_repetition(penalty: dict[str, Any]) -> None:
    sampler = Sampler(Sampling(temperature=0, **penalty), prompt=[], ends=[])
    assert [sampler.choose(scores()) for _ in range(2)] == [0, 1]


def test_only_repetition_penalty_includes_the_prompt() -> None:
    assert Sampler(Sampling(temperature=0, repetition_penalty=9.0), prompt=[0], ends=[]).choose(scores()) == 1
    assert Sampler(Sampling(temperature=0, presence_penalty=2.0), prompt=[0], ends=[]).choose(scores()) == 0


def test_min_tokens_suppresses_the_end_token() -> None:
    sampler = Sampler(Sampling(temperature=0, min_tokens=2), prompt=[], ends=[0])
    assert [sampler.choose(scores()) for _ in range(3)] == [1, 1, 0]


def test_seed_makes_sampling_deterministic() -> None:
    def ten(seed: int | None) -> list[int]:
        sampler = Sampler(Sampling(seed=seed), prompt=[], ends=[])
        return [sampler.choose(scores()) for _ in range(30)]

    assert ten(4) == ten(4)
    assert ten(4) != ten(5)
    assert ten(None) != ten(None)
