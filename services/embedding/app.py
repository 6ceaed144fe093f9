"""Application factory of the embedding service."""

from collections.abc import Callable
from pathlib import Path

from fastapi import FastAPI

from kit.config.catalogue import Kind
from kit.service.service import ModelService, Report, create_service_app, end_process, in_daemon_thread
from services.embedding.batching.batch_selection import BatchLimits
from services.embedding.batching.batcher import Batcher
from services.embedding.batching.metrics import BatchMetrics
from services.embedding.engines import engine_selection
from services.embedding.engines.interface import TextEngine
from services.embedding.routes import create_routes
from services.embedding.settings import EmbeddingSettings

# Loads the engine for the model in a folder. Blocks; called in its own thread.
OpenEngine = Callable[[Path, Kind, EmbeddingSettings, Report], TextEngine]


def create_app(
    settings: EmbeddingSettings,
    open_engine: OpenEngine = engine_selection.open_engine,
    end: Callable[[], None] = end_process,
) -> FastAPI:
    """Create the application; the model loads once it runs. `end` is called after the engine has failed for good.

    Raises SettingsError if MODEL is not an embedding model or reranker of the catalogue.
    """
    entry = settings.entry("embedding", "reranker")

    async def load(folder: Path, report: Report) -> Batcher:
        engine = await in_daemon_thread(open_engine, folder, entry.kind, settings, report)
        service.context_length = engine.max_tokens
        return Batcher(
            engine,
            limits=BatchLimits(settings.max_batch_size, settings.max_batch_tokens),
            max_wait_s=settings.max_wait_ms / 1000,
            max_queue=settings.max_queue,
            metrics=batch_metrics,
            on_engine_failed=service.engine_failed,
        )

    service = ModelService(settings, entry, load, end)
    batch_metrics = BatchMetrics(service.metrics.registry)
    app = create_service_app(service, title=f"Embeddings: {entry.name}")
    app.include_router(create_routes(service, settings))
    return app
