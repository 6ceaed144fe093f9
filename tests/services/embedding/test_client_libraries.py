"""Rerank and embeddings through the client libraries that users have."""

from collections.abc import Iterator
from typing import Any

import cohere
import httpx
import httpx2
import pytest
from openai import BadRequestError, OpenAI

from tests.services.embedding.fake_engine import FakeEngine
from tests.services.fake_service import Start

DOCUMENTS = ["a cat", "a dog", "a bird"]
LONG = "word " * 2000


@pytest.fixture
def reranker(start: Start) -> Iterator[httpx2.Client]:
    with start(FakeEngine(dimensions=1), kind="reranker") as client:
        yield client


@pytest.fixture
def options(reranker: httpx2.Client) -> Iterator[dict[str, Any]]:
    """Options of a Cohere client of the reranker."""
    with httpx.Client() as http:
        yield {"api_key": "none", "base_url": str(reranker.base_url).rstrip("/"), "httpx_client": http}


def test_cohere_v1_client_reranks(options: dict[str, Any]) -> None:
    """Texts or objects, whose other fields come back, as Cohere documents it."""
    with cohere.Client(**options) as client:
        bare: Any = client.rerank(query="a pet", documents=DOCUMENTS, model="tiny", return_documents=False)
        assert sorted(result.index for result in bare.results) == [0, 1, 2]
        assert bare.id
        assert bare.meta.api_version.version == "1"
        assert bare.results[0].document is None
        scores = [result.relevance_score for result in bare.results]
        assert scores == sorted(scores, reverse=True)

        documents = [{"text": text, "title": text.upper()} for text in DOCUMENTS]
        best: Any = client.rerank(
            query="a pet", documents=documents, model="tiny", top_n=1, return_documents=True, max_chunks_per_doc=10
        )
        assert [(result.index, result.relevance_score) for result in best.results] == [
            (bare.results[0].index, scores[0])
        ]
        assert best.results[0].document.text == DOCUMENTS[best.results[0].index]
        assert best.results[0].document.title == DOCUMENTS[best.results[0].index].upper()

        by_title: Any = client.rerank(
            query="a pet",
            documents=[{"text": "x", "title": text} for text in DOCUMENTS],
            model="tiny",
            rank_fields=["title"],
        )
        assert [result.relevance_score for result in by_title.results] == scores
        client.rerank(query="a pet", documents=[LONG], model="tiny", max_chunks_per_doc=1)


def test_cohere_v2_client_reranks(options: dict[str, Any]) -> None:
    """Long documents are truncated: max_tokens_per_doc is 4096 unless it is sent."""
    client = cohere.ClientV2(**options)
    ranked: Any = client.rerank(model="tiny", query="a pet", documents=[*DOCUMENTS, LONG], top_n=2)
    assert len(ranked.results) == 2
    assert ranked.id
    assert ranked.meta.api_version.version == "2"
    long = [f"{text} and more of it" for text in DOCUMENTS]
    cut: Any = client.rerank(model="tiny", query="a pet", documents=long, max_tokens_per_doc=2)
    whole: Any = client.rerank(model="tiny", query="a pet", documents=DOCUMENTS)
    assert [(item.index, item.relevance_score) for item in cut.results] == [
        (item.index, item.relevance_score) for item in whole.results
    ]


def test_cohere_clients_raise_their_error_classes(options: dict[str, Any]) -> None:
    for client in (cohere.Client(**options), cohere.ClientV2(**options)):
        with pytest.raises(cohere.BadRequestError, match="query is an empty string"):
            client.rerank(model="tiny", query="", documents=DOCUMENTS)
        with pytest.raises(cohere.NotFoundError, match="'rerank' does not exist"):
            client.rerank(model="rerank", query="a", documents=DOCUMENTS)


def test_langchain_embeddings_with_default_settings_are_a_400(client: httpx2.Client) -> None:
    """The request of langchain-openai's OpenAIEmbeddings: cl100k ids of "hello world", through OpenAI's client.

    With check_embedding_ctx_length=False it sends the text.
    """
    with OpenAI(base_url=f"{client.base_url}/v1", api_key="none", max_retries=0) as openai:
        with pytest.raises(BadRequestError, match="check_embedding_ctx_length=False"):
            openai.embeddings.create(model="tiny", input=[[15339, 1917]])
        assert openai.embeddings.create(model="tiny", input=["hello world"]).data[0].embedding
