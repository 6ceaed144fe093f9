"""Validation of the generation options shared by all text routes."""

from typing import Any

import pytest

from kit.errors import InvalidRequest
from services.llm.validation.options import Options, Sampling, read_options

LIMITS = ("max_completion_tokens", "max_tokens")


def read(body: dict[str, Any]) -> Options:
    return read_options(body, Sampling(temperature=0.7, top_k=5), *LIMITS)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, Options(Sampling(temperature=0.7, top_k=5))),
        ({"temperature": None}, Options(Sampling(temperature=0.7, top_k=5))),
        ({"temperature": 0, "top_k": -1}, Options(Sampling(temperature=0.0, top_k=0))),
        ({"seed": 3}, Options(Sampling(temperature=0.7, top_k=5, seed=3))),
        ({"logit_bias": {"7": -100}}, Options(Sampling(temperature=0.7, top_k=5, logit_bias={7: -100.0}))),
        ({"max_tokens": 4}, Options(Sampling(temperature=0.7, top_k=5), max_tokens=4)),
        ({"max_tokens": 4, "max_completion_tokens": 9}, Options(Sampling(temperature=0.7, top_k=5), max_tokens=9)),
        ({"stop": "x"}, Options(Sampling(temperature=0.7, top_k=5), stop=("x",))),
        ({"stop": ["x", "yz"]}, Options(Sampling(temperature=0.7, top_k=5), stop=("x", "yz"))),
        ({"ignore_eos": True}, Options(Sampling(temperature=0.7, top_k=5), ignore_eos=True)),
    ],
)
def test_absent_fields_keep_the_model_defaults(body: dict[str, Any], expected: Options) -> None:
    assert read(body) == expected


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", 2.1),
        ("temperature", "hot"),
        ("temperature", True),
        ("temperature", float("nan")),
        ("top_p", 1.5),
        ("top_k", 1.5),
        ("min_p", -1),
        ("repetition_penalty", 0),
        ("presence_penalty", 3),
        ("frequency_penalty", -3),
        ("seed", "lucky"),
        ("seed", 2**70),
        ("min_tokens", -1),
        ("max_tokens", 0),
        ("max_tokens", -1),
        ("max_tokens", 1.0),
        ("max_completion_tokens", "many"),
        ("logit_bias", [1]),
        ("logit_bias", {"a": 1}),
        ("logit_bias", {"1": 101}),
        ("logit_bias", {"1" * 5000: 1}),
        ("logit_bias", {"²": 1}),
        ("stop", 7),
        ("stop", [""]),
        ("stop", ["a"] * 17),
        ("ignore_eos", "yes"),
    ],
)
def test_invalid_values_are_rejected_by_field(field: str, value: Any) -> None:
    with pytest.raises(InvalidRequest, match=field) as refused:
        read({field: value})
    assert refused.value.param == field
