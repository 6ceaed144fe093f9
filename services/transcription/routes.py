"""OpenAI's audio routes: read the upload, queue it, respond in the requested format."""

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
from services.transcription.recognition import Recognition
from services.transcription.recognition_queue import RecognitionQueue
from services.transcription.request_form import TranscriptionRequest, model_name, read_request, uploaded_file
from services.transcription.settings import TranscriptionSettings

# Larger uploads are spooled to disk.
SPOOL_BYTES = 1024 * 1024
# A form has a file and a prompt of at most some hundred words.
MAX_FIELDS = 32
MAX_FIELD_BYTES = 64 * 1024


def create_routes(service: ModelService[RecognitionQueue], settings: TranscriptionSettings) -> APIRouter:
    """Return OpenAI's audio routes, and the raw-audio route of Chat UI's microphone."""
    routes = APIRouter()

    async def transcribe_form(request: Request, task: Task) -> Response:
        recognitions = service.engine()
        with recognitions.reserve():
            upload = limited(request, limit_mb=settings.max_upload_mb, setting="MAX_UPLOAD_MB")
            form = await upload.form(max_files=1, max_fields=MAX_FIELDS, max_part_size=MAX_FIELD_BYTES)
            try:
                service.check_model(model_name(form))
                fields = read_request(form, task, recognitions.engine, vad_filter=settings.vad_filter)
                file = uploaded_file(form).file
                await asyncio.to_thread(check, file)
            except BaseException:
                await form.close()
                raise
        recognition = recognitions.submit(file, fields.options)
        return await _respond(request, recognition, fields)

    @routes.post("/v1/audio/transcriptions", openapi_extra=_form_schema())
    async def transcriptions(request: Request) -> Response:
        """Transcribe a recording."""
        return await transcribe_form(request, "transcribe")

    @routes.post("/v1/audio/translations", openapi_extra=_form_schema())
    async def translations(request: Request) -> Response:
        """Transcribe a recording and translate it into English."""
        return await transcribe_form(request, "translate")

    @routes.post("/transcribe/{model:path}", dependencies=[Depends(service.require_key)])
    async def transcribe(request: Request, model: str) -> JSONResponse:
        """Transcribe raw audio in the body to `{"text": ...}`, for Chat UI's microphone."""
        service.check_model(model)
        recognitions = service.engine()
        with recognitions.reserve():
            file = await _spooled(limited(request, limit_mb=settings.max_upload_mb, setting="MAX_UPLOAD_MB"))
            try:
                await asyncio.to_thread(check, file)
            except BaseException:
                file.close()
                raise
        async with recognitions.submit(file, Options(vad=settings.vad_filter, text_only=True)) as recognition:
            _info, segments = await cancel_on_disconnect(request, _all_segments(recognition))
        return JSONResponse({"text": response_formats.full_text(segments)})

    return routes


async def _respond(request: Request, recognition: Recognition, fields: TranscriptionRequest) -> Response:
    if fields.stream:
        try:
            await cancel_on_disconnect(request, recognition.info())
        except BaseException:
            recognition.close()
            raise
        return _EventStream(recognition)
    async with recognition:
        info, segments = await cancel_on_disconnect(request, _all_segments(recognition))
    if fields.format == "json":
        return JSONResponse(response_formats.json_body(info, segments))
    if fields.format == "verbose_json":
        return JSONResponse(
            response_formats.verbose_json_body(
                info, segments, task=fields.options.task, granularities=fields.granularities
            )
        )
    text = {"text": response_formats.full_text, "srt": response_formats.srt, "vtt": response_formats.vtt}[
        fields.format
    ](segments)
    return PlainTextResponse(text if fields.format != "text" else text + "\n")


async def _all_segments(recognition: Recognition) -> tuple[Info, list[Segment]]:
    info = await recognition.info()
    return info, [segment async for segment in recognition.segments()]


class _EventStream(StreamingResponse):
    """Streamed response; cancels the recognition when the client disconnects."""

    def __init__(self, recognition: Recognition) -> None:
        super().__init__(_events(recognition), media_type="text/event-stream", headers={"cache-control": "no-cache"})
        self._recognition = recognition

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        async with self._recognition:
            await super().__call__(scope, receive, send)


async def _events(recognition: Recognition) -> AsyncIterator[bytes]:
    """Yield the events. The joined deltas equal the text of the last event."""
    text_so_far = ""
    try:
        async for segment in recognition.segments():
            text = segment.text if text_so_far else segment.text.lstrip()
            if text:
                text_so_far += text
                yield response_formats.event({"type": "transcript.text.delta", "delta": text})
    except ApiError as error:
        yield response_formats.event(error.body())
        return
    yield response_formats.event({"type": "transcript.text.done", "text": text_so_far})


async def _spooled(request: Request) -> BinaryIO:
    """Return the body as a file, in memory while it is small."""
    file = UploadFile(cast(BinaryIO, SpooledTemporaryFile(max_size=SPOOL_BYTES)), size=0)  # noqa: SIM115  # returned open
    try:
        async for chunk in request.stream():
            await file.write(chunk)
        if not file.size:
            raise InvalidRequest("The body is empty. Send the bytes of a recording.", code="invalid_audio")
    except BaseException:
        await file.close()
        raise
    return file.file


def _form_schema() -> dict[str, Any]:
    """Return the OpenAPI description of the form: the routes read it themselves, within limits."""
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
