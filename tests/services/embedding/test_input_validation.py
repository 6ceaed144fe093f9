"""Request bodies become work or a clear error."""

import json
from typing import Any

import pytest

from kit.errors import InvalidRequest
from services.embedding.input_validation import (
    EmbeddingBody,
    RerankBody,
    ScoreBody,
    embedding_work,
    parse,
    rerank_work,
    score_work,
)
from tests.services.embedding.fake_engine import FakeEngine


def embedding(**body: Any) -> Any:
    return embedding_work(parse(EmbeddingBody, json.dumps(body).encode()), FakeEngine(), 4)


def test_input_is_one_or_several_texts() -> None:
    assert embedding(input="a b").texts == ["a b"]
    assert embedding(input=["a", "b"]).texts == ["a", "b"]


def test_input_is_one_or_several_lists_of_token_ids() -> None:
    assert [list(item.ids) for item in embedding(input=[1, 5, 2]).tokens] == [[1, 5, 2]]
    assert [list(item.ids) for item in embedding(input=[[1, 2], [1, 5, 2]]).tokens] == [[1, 2], [1, 5, 2]]


def test_truncation_is_opt_in() -> None:
    """To the model's limit, or to a number of tokens."""
    assert embedding(input="a").truncate_to is None
    assert embedding(input="a", truncate=True).truncate_to == 16
    assert embedding(input="a", truncate_prompt_tokens=-1).truncate_to == 16
    assert embedding(input="a", truncate_prompt_tokens=5).truncate_to == 5
    assert list(embedding(input=[1, 5, 6, 2], truncate_prompt_tokens=2).tokens[0].ids) == [1, 5]


def test_very_long_texts_are_not_tokenized() -> None:
    """A text of megabytes is rejected, or truncated on request, before the tokenizer runs."""
    with pytest.raises(InvalidRequest, match="1000000 characters"):
        embedding(input="a" * 1_000_000)
    assert len(embedding(input="a" * 1_000_000, truncate=True).texts[0]) == 16 * 128


def test_very_long_token_lists_are_not_checked_id_by_id() -> None:
    """Millions of ids would block the event loop."""
    ids = [1] * 2000 + [-1]
    with pytest.raises(InvalidRequest, match="2001 tokens"):
        embedding(input=ids)
    assert len(embedding(input=ids, truncate=True).tokens[0]) == 16


def test_prompt_name_selects_a_prompt_of_the_model() -> None:
    assert embedding(input="a", prompt_name="query").prompt == "query"


def test_rerank_pairs_the_query_with_each_document() -> None:
    """Documents are strings or objects with a text."""
    body = parse(RerankBody, json.dumps({"query": "q", "documents": ["a", {"text": "b"}]}).encode())
    work, documents = rerank_work(body, FakeEngine(), 4)
    assert work.texts == [("q", "a"), ("q", "b")]
    assert documents == ["a", "b"]


@pytest.mark.parametrize(
    ("first", "second", "pairs"),
    [
        ("q", "a", [("q", "a")]),
        ("q", ["a", "b"], [("q", "a"), ("q", "b")]),
        (["q", "r"], ["a", "b"], [("q", "a"), ("r", "b")]),
    ],
)
def test_score_pairs_one_with_many_or_pairwise(first: Any, second: Any, pairs: list[tuple[str, str]]) -> None:
    body = parse(ScoreBody, json.dumps({"text_1": first, "text_2": second}).encode())
    assert score_work(body, FakeEngine(), 4).texts == pairs
