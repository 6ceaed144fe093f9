"""The routes of the transcription service: take the upload, queue it, answer in the wished format."""

import asyncio
from collections.abc import AsyncIterator
from tempfile import SpooledTemporaryFile
from typing import Any, BinaryIO, cast

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.datastructures import UploadFile
from starlette.types import Receive, Scope, Send

from kit.errors import ApiError, InvalidRequest
from kit.service.service import ModelService
from kit.web.body import limited
from kit.web.disconnect import cancel_on_disconnect
from services.transcription import response_formats
from services.transcription.audio import check
from services.transcription.engine import Info, Options, Segment, Task
from services.transcription.recognition import Hearing
from services.transcription.recognition_queue import Jobs
from services.transcription.request_form import Wish, file_of, model_of, wish_of
from services.transcription.settings import TranscriptionSettings

# Uploads up to this size stay in memory; the rest waits on disk.
SPOOL_BYTES = 1024 * 1024
# A form holds a file, and a prompt of at most some hundred words.
MAX_FIELDS = 32
MAX_FIELD_BYTES = 64 * 1024


def create_routes(service: ModelService[Jobs], settings: TranscriptionSettings) -> APIRouter:
    """OpenAI's audio routes, and the raw-audio route that Chat UI's microphone posts to."""
    routes = APIRouter()
    keys = settings.key_ring()

    def with_key(request: Request) -> None:
        """The key check for a route outside /v1, where the frame does not make it."""
        refusal = keys.refusal(request.headers.get("authorization"))
        if refusal is not None:
            raise refusal

    async def answer(request: Request, task: Task) -> Response:
        jobs = service.engine()
        with jobs.entering():
            upload = limited(request, limit_mb=settings.max_upload_mb, setting="MAX_UPLOAD_MB")
            form = await upload.form(max_files=1, max_fields=MAX_FIELDS, max_part_size=MAX_FIELD_BYTES)
            try:
                service.check_model(model_of(form))
                wish = wish_of(form, task, jobs.engine, vad_filter=settings.vad_filter)
                file = file_of(form).file
                await asyncio.to_thread(check, file)
            except BaseException:
                await form.close()
                raise
        hearing = jobs.hear(file, wish.options)
        return await _answer(request, hearing, wish)

    @routes.post("/v1/audio/transcriptions", openapi_extra=_form_schema())
    async def transcriptions(request: Request) -> Response:
        """What is said in a recording, in its own language."""
        return await answer(request, "transcribe")

    @routes.post("/v1/audio/translations", openapi_extra=_form_schema())
    async def translations(request: Request) -> Response:
        """What is said in a recording, in English."""
        return await answer(request, "translate")

    @routes.post("/transcribe/{model:path}", dependencies=[Depends(with_key)])
    async def transcribe(request: Request, model: str) -> JSONResponse:
        """What is said in the raw audio of the body, as `{"text": ...}`: Chat UI's microphone posts here."""
        service.check_model(model)
        jobs = service.engine()
        with jobs.entering():
            file = await _spooled(limited(request, limit_mb=settings.max_upload_mb, setting="MAX_UPLOAD_MB"))
            try:
                await asyncio.to_thread(check, file)
            except BaseException:
                file.close()
                raise
        async with jobs.hear(file, Options(vad=settings.vad_filter, coarse=True)) as hearing:
            _info, segments = await cancel_on_disconnect(request, _all(hearing))
        return JSONResponse({"text": response_formats.text_of(segments)})

    return routes


async def _answer(request: Request, hearing: Hearing, wish: Wish) -> Response:
    if wish.stream:
        try:
            await cancel_on_disconnect(request, hearing.info())
        except BaseException:
            hearing.leave()
            raise
        return _EventStream(hearing)
    async with hearing:
        info, segments = await cancel_on_disconnect(request, _all(hearing))
    if wish.format == "json":
        return JSONResponse(response_formats.simple(info, segments))
    if wish.format == "verbose_json":
        return JSONResponse(
            response_formats.verbose(info, segments, task=wish.options.task, granularities=wish.granularities)
        )
    text = {"text": response_formats.text_of, "srt": response_formats.srt, "vtt": response_formats.vtt}[wish.format](
        segments
    )
    return PlainTextResponse(text if wish.format != "text" else text + "\n")


async def _all(hearing: Hearing) -> tuple[Info, list[Segment]]:
    info = await hearing.info()
    return info, [segment async for segment in hearing.segments()]


class _EventStream(StreamingResponse):
    """The streamed answer, which gives the recording up when its client leaves."""

    def __init__(self, hearing: Hearing) -> None:
        super().__init__(_events(hearing), media_type="text/event-stream", headers={"cache-control": "no-cache"})
        self._hearing = hearing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        async with self._hearing:
            await super().__call__(scope, receive, send)


async def _events(hearing: Hearing) -> AsyncIterator[bytes]:
    """The events. The deltas joined are the text of the last one."""
    said = ""
    try:
        async for segment in hearing.segments():
            text = segment.text if said else segment.text.lstrip()
            if text:
                said += text
                yield response_formats.delta(text)
    except ApiError as error:
        yield response_formats.failed(error.body())
        return
    yield response_formats.done(said)


async def _spooled(request: Request) -> BinaryIO:
    """The body as a file, in memory while it is small."""
    file = UploadFile(cast(BinaryIO, SpooledTemporaryFile(max_size=SPOOL_BYTES)), size=0)  # noqa: SIM115  # handed on
    try:
        async for chunk in request.stream():
            await file.write(chunk)
        if not file.size:
            raise InvalidRequest("The body is empty. Send the recording as it is.", code="invalid_audio")
    except BaseException:
        await file.close()
        raise
    return file.file


def _form_schema() -> dict[str, Any]:
    """The form for /docs; the routes read it themselves, within limits."""
    text = {"type": "string"}
    fields = {
        "file": {"type": "string", "format": "binary"},
        "model": text,
        "language": text,
        "prompt": text,
        "response_format": {"enum": ["json", "text", "srt", "verbose_json", "vtt"]},
        "temperature": {"type": "number", "minimum": 0, "maximum": 1},
        "timestamp_granularities[]": {"type": "array", "items": {"enum": ["word", "segment"]}},
        "stream": {"type": "boolean"},
        "vad_filter": {"type": "boolean"},
    }
    schema = {"type": "object", "required": ["file"], "properties": fields}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}
