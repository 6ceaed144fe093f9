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


@pytest.mark.parametrize(
    "ids", [[[15339, 1917]], [5, 6], [1, 5], [5, 2], [2, 5, 1], [[1, 5, 2], [5, 6]], [1], [2]], ids=str
)
def test_token_ids_without_the_models_special_tokens_are_rejected(ids: Any) -> None:
    """LangChain's OpenAIEmbeddings sends cl100k ids by default; as this model's ids they would be another text."""
    with pytest.raises(InvalidRequest, match=r"begin with \[1\] and end with \[2\].*check_embedding_ctx_length=False"):
        embedding(input=ids)


def test_token_ids_of_a_model_without_special_tokens_are_rejected() -> None:
    """Nothing distinguishes them from ids of another tokenizer."""
    engine = FakeEngine()
    engine.special_tokens = ([], [])
    with pytest.raises(InvalidRequest, match="check_embedding_ctx_length=False"):
        embedding_work(parse(EmbeddingBody, b'{"input": [1, 5, 2]}'), engine, 4)


def test_truncation_is_opt_in() -> None:
    """To the model's limit, or to a number of tokens. Token ids keep their closing token."""
    assert embedding(input="a").truncate_to is None
    assert embedding(input="a", truncate=True).truncate_to == 16
    assert embedding(input="a", truncate_prompt_tokens=-1).truncate_to == 16
    assert embedding(input="a", truncate_prompt_tokens=5).truncate_to == 5
    assert list(embedding(input=[1, 5, 6, 2], truncate_prompt_tokens=3).tokens[0].ids) == [1, 5, 2]
    assert list(embedding(input=[1, 5, 6, 2], truncate_prompt_tokens=4).tokens[0].ids) == [1, 5, 6, 2]


@pytest.mark.parametrize(("truncate", "truncate_to"), [(None, 16), (True, 16), (False, None)])
def test_auto_truncate_is_the_default_of_truncate(truncate: bool | None, truncate_to: int | None) -> None:
    """TEI's auto_truncate; null is absent."""
    body = json.dumps(
        {"input": "a", "query": "q", "documents": ["a"], "text_1": "a", "text_2": "b"} | {"truncate": truncate}
    ).encode()
    for work in (
        embedding_work(parse(EmbeddingBody, body), FakeEngine(), 4, auto_truncate=True),
        rerank_work(parse(RerankBody, body), FakeEngine(), 4, auto_truncate=True),
        score_work(parse(ScoreBody, body), FakeEngine(), 4, auto_truncate=True),
    ):
        assert work.truncate_to == truncate_to


def test_very_long_texts_are_not_tokenized() -> None:
    """A text of megabytes is rejected, or truncated on request, before the tokenizer runs."""
    with pytest.raises(InvalidRequest, match="1000000 characters"):
        embedding(input="a" * 1_000_000)
    assert len(embedding(input="a" * 1_000_000, truncate=True).texts[0]) == 16 * 128


def test_very_long_token_lists_are_not_checked_id_by_id() -> None:
    """Millions of ids would block the event loop."""
    ids = [1] * 2000 + [-1, 2]
    with pytest.raises(InvalidRequest, match="2002 tokens"):
        embedding(input=ids)
    assert len(embedding(input=ids, truncate=True).tokens[0]) == 16


def test_prompt_name_selects_a_prompt_of_the_model() -> None:
    assert embedding(input="a", prompt_name="query").prompt == "query"


def rerank(**body: Any) -> Any:
    return rerank_work(parse(RerankBody, json.dumps({"query": "q"} | body).encode()), FakeEngine(), 4)


def test_rerank_pairs_the_query_with_each_document() -> None:
    """Documents are strings or objects with a text; with rank_fields, those fields in that order, as in Cohere's v1."""
    assert rerank(documents=["a", {"text": "b"}]).texts == [("q", "a"), ("q", "b")]
    documents = ["a", {"title": "b", "text": "c"}, {"text": "d", "title": None}, {"title": "", "text": "e"}]
    texts = [text for _, text in rerank(documents=documents, rank_fields=["title", "text"]).texts]
    assert texts == ["a", "b\nc", "d", "e"]


def test_cohere_limits_truncate_documents() -> None:
    """Cohere's API truncates long documents (v2) or ranks them by their first chunk (v1), and rejects neither."""
    work = rerank(documents=["a"], max_tokens_per_doc=5)
    assert (work.document_tokens, work.truncate_to) == (5, 16)
    work = rerank(documents=["a"], max_tokens_per_doc=4096)
    assert (work.document_tokens, work.truncate_to) == (None, 16)
    assert rerank(documents=["a"], max_chunks_per_doc=10).truncate_to == 16
    assert rerank(documents=["a"], max_tokens_per_doc=4096, truncate=False).truncate_to is None


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
