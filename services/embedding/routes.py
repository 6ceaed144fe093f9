"""The routes of the embedding service: check, batch, answer."""

import secrets
import time
from typing import Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from kit.errors import NotFound
from kit.service.service import ModelService
from kit.web.body import BodyMemory, limited
from kit.web.disconnect import cancel_on_disconnect
from services.embedding import responses
from services.embedding.batching.batcher import Batcher
from services.embedding.input_validation import (
    B,
    EmbeddingBody,
    RerankBody,
    ScoreBody,
    embedding_work,
    parse,
    rerank_work,
    score_work,
)
from services.embedding.settings import EmbeddingSettings


def create_routes(service: ModelService[Batcher], settings: EmbeddingSettings) -> APIRouter:
    """The OpenAI routes of an embedding model, and the rerank and score routes of a cross-encoder."""
    routes = APIRouter()

    room = BodyMemory(settings.max_bodies_mb, setting="MAX_BODIES_MB")

    async def parsed(body: type[B], request: Request) -> B:
        within = limited(request, limit_mb=settings.max_body_mb, setting="MAX_BODY_MB")
        async with room.holding(within) as data:
            return parse(body, data)

    def batcher_of(kind: Literal["embedding", "reranker"]) -> Batcher:
        if service.entry.kind != kind:
            raise NotFound(
                f"{service.entry.name} is of kind {service.entry.kind}; this route needs a model of kind {kind}."
            )
        return service.engine()

    @routes.post("/v1/embeddings", openapi_extra=_documented(EmbeddingBody))
    async def embeddings(request: Request) -> Response:
        """One embedding per text. Pooling and normalisation are the model's own."""
        body = await parsed(EmbeddingBody, request)
        model = service.check_model(body.model)
        batcher = batcher_of("embedding")
        work = embedding_work(body, batcher.engine, settings.max_inputs)
        rows = await cancel_on_disconnect(request, batcher.submit(work))
        content = await responses.embeddings(rows, model=model, format=body.encoding_format, dimensions=body.dimensions)
        return Response(content, media_type="application/json")

    @routes.post("/v1/rerank", openapi_extra=_documented(RerankBody))
    async def rerank(request: Request) -> JSONResponse:
        """Documents by their relevance to a query, best first."""
        body = await parsed(RerankBody, request)
        model = service.check_model(body.model)
        batcher = batcher_of("reranker")
        work, documents = rerank_work(body, batcher.engine, settings.max_inputs)
        rows = await cancel_on_disconnect(request, batcher.submit(work))
        return JSONResponse(
            responses.rerank(
                rows,
                id=f"rerank-{secrets.token_hex(8)}",
                model=model,
                documents=documents,
                top_n=body.top_n,
                with_documents=body.return_documents,
            )
        )

    @routes.post("/v1/score", openapi_extra=_documented(ScoreBody))
    async def score(request: Request) -> JSONResponse:
        """The relevance of pairs of texts, in the request's order."""
        body = await parsed(ScoreBody, request)
        model = service.check_model(body.model)
        batcher = batcher_of("reranker")
        work = score_work(body, batcher.engine, settings.max_inputs)
        rows = await cancel_on_disconnect(request, batcher.submit(work))
        return JSONResponse(
            responses.scores(rows, id=f"score-{secrets.token_hex(8)}", model=model, created=int(time.time()))
        )

    return routes


def _documented(body: type[EmbeddingBody | RerankBody | ScoreBody]) -> dict[str, Any]:
    """The request body for /docs; the routes read the raw bytes themselves, within a limit."""
    schema = {"application/json": {"schema": body.model_json_schema()}}
    return {"requestBody": {"required": True, "content": schema}}
