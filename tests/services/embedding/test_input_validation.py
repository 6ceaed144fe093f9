"""Bodies become work, or an error that says what to change."""

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


def test_texts() -> None:
    """A string is one text, a list of strings several."""
    assert embedding(input="a b").texts == ["a b"]
    assert embedding(input=["a", "b"]).texts == ["a", "b"]


def test_token_ids() -> None:
    """A list of numbers is one text, a list of lists several; the ids are taken as they stand."""
    assert [list(item.ids) for item in embedding(input=[1, 5, 2]).tokens] == [[1, 5, 2]]
    assert [list(item.ids) for item in embedding(input=[[1, 2], [1, 5, 2]]).tokens] == [[1, 2], [1, 5, 2]]


def test_cut() -> None:
    """Texts are cut only when asked: to the model's limit, or to a number of tokens."""
    assert embedding(input="a").cut is None
    assert embedding(input="a", truncate=True).cut == 16
    assert embedding(input="a", truncate_prompt_tokens=-1).cut == 16
    assert embedding(input="a", truncate_prompt_tokens=5).cut == 5
    assert list(embedding(input=[1, 5, 6, 2], truncate_prompt_tokens=2).tokens[0].ids) == [1, 5]


def test_very_long_texts_are_not_tokenized() -> None:
    """A text of megabytes is refused, or cut when asked, before the tokenizer sees it."""
    with pytest.raises(InvalidRequest, match="1000000 characters"):
        embedding(input="a" * 1_000_000)
    assert len(embedding(input="a" * 1_000_000, truncate=True).texts[0]) == 16 * 128


def test_very_long_lists_of_token_ids_are_not_looked_through() -> None:
    """Millions of ids are refused, or cut when asked, before each is checked on the event loop."""
    ids = [1] * 2000 + [-1]
    with pytest.raises(InvalidRequest, match="2001 tokens"):
        embedding(input=ids)
    assert len(embedding(input=ids, truncate=True).tokens[0]) == 16


def test_prompt() -> None:
    """A model's own prompts go by their names."""
    assert embedding(input="a", prompt_name="query").prompt == "query"


def test_rerank() -> None:
    """Each document makes a pair with the query; documents may be strings or objects with a text."""
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
def test_score(first: Any, second: Any, pairs: list[tuple[str, str]]) -> None:
    """One text against each of the others, or two lists pairwise."""
    body = parse(ScoreBody, json.dumps({"text_1": first, "text_2": second}).encode())
    assert score_work(body, FakeEngine(), 4).texts == pairs
