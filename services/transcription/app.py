"""Application factory of the transcription service."""

from collections.abc import Callable
from pathlib import Path

from fastapi import FastAPI

from kit.service.service import ModelService, Report, create_service_app, end_process, in_daemon_thread
from services.transcription import whisper
from services.transcription.engine import SpeechEngine
from services.transcription.metrics import SpeechMetrics
from services.transcription.recognition_queue import RecognitionQueue
from services.transcription.routes import create_routes
from services.transcription.settings import TranscriptionSettings

# Loads the engine for the model in a folder. Blocks; called in its own thread.
OpenEngine = Callable[[Path, TranscriptionSettings, Report], SpeechEngine]


def create_app(
    settings: TranscriptionSettings,
    open_engine: OpenEngine = whisper.open_engine,
    end: Callable[[], None] = end_process,
) -> FastAPI:
    """Create the application; the model loads once it runs. `end` is called after the engine has failed for good.

    Raises SettingsError if MODEL is not a transcription model of the catalogue.
    """
    entry = settings.entry("transcription")

    async def load(folder: Path, report: Report) -> RecognitionQueue:
        engine = await in_daemon_thread(open_engine, folder, settings, report)
        return RecognitionQueue(
            engine,
            max_queue=settings.max_queue,
            max_seconds=settings.max_audio_seconds,
            metrics=speech_metrics,
            on_engine_failed=service.engine_failed,
        )

    service = ModelService(settings, entry, load, end)
    speech_metrics = SpeechMetrics(service.metrics.registry)
    app = create_service_app(service, title=f"Transcription: {entry.name}")
    app.include_router(create_routes(service, settings))
    return app
