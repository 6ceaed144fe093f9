"""Response bodies. Encoding thousands of embeddings yields to the event loop in between."""

import asyncio
import base64
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic_core import from_json, to_json

from services.embedding.batching.jobs import Rows

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Row = NDArray[np.float32]

# Encoding one row takes some tens of microseconds.
ROWS_PER_YIELD = 16


async def embeddings_body(
    rows: Rows, *, model: str, format: Literal["float", "base64"], dimensions: int | None
) -> bytes:
    """Return the JSON body of `/v1/embeddings`."""
    pieces = [b'{"object":"list","data":[']
    for index, row in enumerate(rows.rows):
        if index and index % ROWS_PER_YIELD == 0:
            await asyncio.sleep(0)
        comma = b"," if index else b""
        row = truncate_dimensions(row, dimensions)
        value = _base64(row) if format == "base64" else to_json(row.tolist())
        pieces.append(b'%b{"object":"embedding","index":%d,"embedding":%b}' % (comma, index, value))
    pieces.append(b'],"model":%b,"usage":%b}' % (to_json(model), to_json(_usage(rows))))
    return b"".join(pieces)


def truncate_dimensions(row: "Row", dimensions: int | None) -> "Row":
    """Return the first `dimensions` numbers, scaled to length 1 (Matryoshka embeddings); None keeps all."""
    if dimensions is None or dimensions == len(row):
        return row
    head = row[:dimensions]
    length = float((head * head).sum()) ** 0.5
    scaled: Row = head / length if length > 0 else head
    return scaled


def rerank_body(
    rows: Rows,
    *,
    id: str,
    model: str,
    api_version: str,
    documents: Sequence[str | dict[str, Any]],
    top_n: int | None,
    with_documents: bool,
) -> dict[str, Any]:
    """Return the body of the rerank routes, best first; equal scores keep the request's order.

    `meta` is Cohere's, `usage` vLLM's.
    """
    scores = [float(row[0]) for row in rows.rows]
    order = sorted(range(len(scores)), key=lambda index: -scores[index])[:top_n]
    results = [
        {"index": index, "relevance_score": scores[index]}
        | ({"document": _document(documents[index])} if with_documents else {})
        for index in order
    ]
    meta = {"api_version": {"version": api_version}, "tokens": {"input_tokens": rows.tokens}}
    return {"id": id, "model": model, "results": results, "meta": meta, "usage": _usage(rows)}


def score_body(rows: Rows, *, id: str, model: str, created: int) -> dict[str, Any]:
    """Return the body of `/v1/score`, in the request's order. `created` is a Unix time in seconds."""
    data = [{"index": index, "object": "score", "score": float(row[0])} for index, row in enumerate(rows.rows)]
    return {"id": id, "object": "list", "created": created, "model": model, "data": data, "usage": _usage(rows)}


def _document(document: str | dict[str, Any]) -> dict[str, Any]:
    """Return an object as it was sent, as Cohere does; a string as an object with a `text`.

    NaN and infinity, which Python's clients send and JSON does not have, become null.
    """
    return {"text": document} if isinstance(document, str) else from_json(to_json(document, inf_nan_mode="null"))


def _usage(rows: Rows) -> dict[str, int]:
    return {"prompt_tokens": rows.tokens, "total_tokens": rows.tokens}


def _base64(row: "Row") -> bytes:
    return b'"%b"' % base64.b64encode(row.astype("<f4", copy=False).tobytes())
