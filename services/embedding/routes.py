"""OpenAI's embeddings route, the rerank routes of Cohere and vLLM, and the score route of vLLM."""

import secrets
import time
from typing import Any, Literal

from fastapi import APIRouter, Depends, Request
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

# Of vLLM, Jina and Cohere's v1, which vLLM also serves under /rerank; of Cohere's v2.
RERANK_PATHS = ("/rerank", "/v1/rerank", "/v2/rerank")
# The default of Cohere's v2 API, whose clients have no other field about truncation.
COHERE_MAX_TOKENS_PER_DOC = 4096


def create_routes(service: ModelService[Batcher], settings: EmbeddingSettings) -> APIRouter:
    """Return the routes of `service`. Rerank and score need a cross-encoder."""
    routes = APIRouter()
    model = service.entry.name
    body_memory = BodyMemory(settings.max_bodies_mb, setting="MAX_BODIES_MB")

    async def read_body(schema: type[B], request: Request, kind: Literal["embedding", "reranker"]) -> tuple[B, Batcher]:
        """Return the body and the batcher, if the body names the model and the model is of `kind`."""
        limited_request = limited(request, limit_mb=settings.max_body_mb, setting="MAX_BODY_MB")
        async with body_memory.holding(limited_request) as data:
            body = parse(schema, data)
        service.check_model(body.model)
        if service.entry.kind != kind:
            raise NotFound(f"Model {model!r} is of kind {service.entry.kind}; this route needs kind {kind}.")
        return body, service.engine()

    @routes.post("/v1/embeddings", openapi_extra=_request_body_schema(EmbeddingBody))
    async def embeddings(request: Request) -> Response:
        """One embedding per text, with the model's own pooling and normalisation."""
        body, batcher = await read_body(EmbeddingBody, request, "embedding")
        work = embedding_work(body, batcher.engine, settings.max_inputs, auto_truncate=settings.auto_truncate)
        rows = await cancel_on_disconnect(request, batcher.submit(work))
        content = await responses.embeddings_body(
            rows, model=model, format=body.encoding_format, dimensions=body.dimensions
        )
        return Response(content, media_type="application/json")

    async def rerank(request: Request) -> JSONResponse:
        """Sort documents by relevance to a query, best first. `/v2/rerank` truncates long ones, as Cohere's does."""
        body, batcher = await read_body(RerankBody, request, "reranker")
        is_v2 = request.url.path == "/v2/rerank"
        if is_v2 and body.max_tokens_per_doc is None:
            body.max_tokens_per_doc = COHERE_MAX_TOKENS_PER_DOC
        count = body.count
        work = rerank_work(body, batcher.engine, settings.max_inputs, auto_truncate=settings.auto_truncate)
        rows = await cancel_on_disconnect(request, batcher.submit(work))
        return JSONResponse(
            responses.rerank_body(
                rows,
                id=f"rerank-{secrets.token_hex(8)}",
                model=model,
                api_version="2" if is_v2 else "1",
                documents=body.documents,
                top_n=count,
                with_documents=body.return_documents,
            )
        )

    for path in RERANK_PATHS:
        routes.add_api_route(
            path,
            rerank,
            methods=["POST"],
            openapi_extra=_request_body_schema(RerankBody),
            dependencies=[Depends(service.require_key)],
        )

    @routes.post("/v1/score", openapi_extra=_request_body_schema(ScoreBody))
    async def score(request: Request) -> JSONResponse:
        """Relevance of pairs of texts, in the request's order."""
        body, batcher = await read_body(ScoreBody, request, "reranker")
        work = score_work(body, batcher.engine, settings.max_inputs, auto_truncate=settings.auto_truncate)
        rows = await cancel_on_disconnect(request, batcher.submit(work))
        return JSONResponse(
            responses.score_body(rows, id=f"score-{secrets.token_hex(8)}", model=model, created=int(time.time()))
        )

    return routes


def _request_body_schema(body: type[EmbeddingBody | RerankBody | ScoreBody]) -> dict[str, Any]:
    """Return the OpenAPI description of a body: the routes read raw bytes, within a limit, so FastAPI has none."""
    schema = {"application/json": {"schema": body.model_json_schema()}}
    return {"requestBody": {"required": True, "content": schema}}
