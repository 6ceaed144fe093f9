"""Response bodies of the embedding service."""

import base64
import json
from typing import Literal

import numpy as np
import pytest

from services.embedding import responses
from services.embedding.batching.jobs import Rows

ROWS = Rows(list(np.random.default_rng(0).standard_normal((40, 6)).astype(np.float32)), tokens=123)


async def body(format: Literal["float", "base64"], dimensions: int | None = None) -> dict[str, object]:
    parsed: dict[str, object] = json.loads(
        await responses.embeddings_body(ROWS, model="tiny", format=format, dimensions=dimensions)
    )
    return parsed


async def test_float_embeddings_keep_order_and_usage() -> None:
    response = await body("float")
    assert response["usage"] == {"prompt_tokens": 123, "total_tokens": 123}
    data = response["data"]
    assert isinstance(data, list)
    assert [item["index"] for item in data] == list(range(40))
    assert np.array_equal(np.array([item["embedding"] for item in data], dtype=np.float32), np.stack(ROWS.rows))


@pytest.mark.parametrize("dimensions", [None, 3])
async def test_base64_is_little_endian_float32(dimensions: int | None) -> None:
    floats = (await body("float", dimensions))["data"]
    coded = (await body("base64", dimensions))["data"]
    assert isinstance(floats, list)
    assert isinstance(coded, list)
    for one, other in zip(floats, coded, strict=True):
        decoded = np.frombuffer(base64.b64decode(other["embedding"]), dtype="<f4")
        assert np.array_equal(decoded, np.array(one["embedding"], dtype=np.float32))


def test_truncated_embeddings_have_unit_length() -> None:
    """Zeros stay zeros."""
    row = np.array([3, 4, 12], dtype=np.float32)
    assert responses.truncate_dimensions(row, 2).tolist() == pytest.approx([0.6, 0.8])
    assert responses.truncate_dimensions(row, 3) is row
    assert responses.truncate_dimensions(np.zeros(3, dtype=np.float32), 2).tolist() == [0, 0]


def test_rerank_sorts_by_score() -> None:
    """Ties keep the request's order; `top_n` and documents only if requested."""
    rows = Rows([np.array([score], dtype=np.float32) for score in (0.25, 0.75, 0.25, 0.5)], tokens=9)
    response = responses.rerank_body(
        rows, id="rerank-1", model="tiny", api_version="1", documents=["a", "b", "c", "d"], top_n=3, with_documents=True
    )
    assert [(item["index"], item["relevance_score"], item["document"]["text"]) for item in response["results"]] == [
        (1, 0.75, "b"),
        (3, 0.5, "d"),
        (0, 0.25, "a"),
    ]
    bare = responses.rerank_body(
        rows, id="r", model="tiny", api_version="2", documents=["a"] * 4, top_n=None, with_documents=False
    )
    assert [item["index"] for item in bare["results"]] == [1, 3, 0, 2]
    assert "document" not in bare["results"][0]
    assert bare["meta"] == {"api_version": {"version": "2"}, "tokens": {"input_tokens": 9}}
