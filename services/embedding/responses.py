"""The bodies of answers. Pure, and in pieces, so that thousands of embeddings never hold up the event loop."""

import asyncio
import base64
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic_core import to_json

from services.embedding.batching.jobs import Rows

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Row = NDArray[np.float32]

# Encoding one row takes some tens of microseconds; other requests get their turn after this many.
ROWS_PER_TURN = 16


async def embeddings(rows: Rows, *, model: str, format: Literal["float", "base64"], dimensions: int | None) -> bytes:
    """The JSON body of an embeddings answer."""
    pieces = [b'{"object":"list","data":[']
    for index, row in enumerate(rows.rows):
        if index and index % ROWS_PER_TURN == 0:
            await asyncio.sleep(0)
        comma = b"," if index else b""
        value = (
            _base64(shortened(row, dimensions)) if format == "base64" else to_json(shortened(row, dimensions).tolist())
        )
        pieces.append(b'%b{"object":"embedding","index":%d,"embedding":%b}' % (comma, index, value))
    pieces.append(b'],"model":%b,"usage":%b}' % (to_json(model), to_json(_usage(rows))))
    return b"".join(pieces)


def shortened(row: "Row", dimensions: int | None) -> "Row":
    """The first `dimensions` numbers, scaled to length 1, as Matryoshka models mean it; None leaves the row alone."""
    if dimensions is None or dimensions == len(row):
        return row
    part = row[:dimensions]
    length = float((part * part).sum()) ** 0.5
    scaled: Row = part / length if length > 0 else part
    return scaled


def rerank(
    rows: Rows, *, id: str, model: str, documents: Sequence[str], top_n: int | None, with_documents: bool
) -> dict[str, Any]:
    """The body of a rerank answer, best first; equal scores keep the request's order."""
    scores = [float(row[0]) for row in rows.rows]
    order = sorted(range(len(scores)), key=lambda index: -scores[index])[:top_n]
    results = [
        {"index": index, "relevance_score": scores[index]}
        | ({"document": {"text": documents[index]}} if with_documents else {})
        for index in order
    ]
    return {"id": id, "model": model, "results": results, "usage": _usage(rows)}


def scores(rows: Rows, *, id: str, model: str, created: int) -> dict[str, Any]:
    """The body of a score answer, in the request's order. `created` is a Unix time in seconds."""
    data = [{"index": index, "object": "score", "score": float(row[0])} for index, row in enumerate(rows.rows)]
    return {"id": id, "object": "list", "created": created, "model": model, "data": data, "usage": _usage(rows)}


def _usage(rows: Rows) -> dict[str, int]:
    return {"prompt_tokens": rows.tokens, "total_tokens": rows.tokens}


def _base64(row: "Row") -> bytes:
    return b'"%b"' % base64.b64encode(row.astype("<f4", copy=False).tobytes())
