"""OpenAI's routes of the transformers engine, and vLLM's /tokenize and /detokenize."""

import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.responses import Response as HttpResponse

from kit.errors import ApiError, InvalidRequest, NotFound
from kit.service.service import ModelService
from kit.web.app import create_app
from kit.web.body import limited
from kit.web.disconnect import cancel_on_disconnect
from kit.web.guard import KeyRing
from services.llm.graceful_stop import INTERRUPTED
from services.llm.settings import LlmSettings
from services.llm.transformers import response_formats
from services.llm.transformers.engine import Route, TransformersEngine
from services.llm.transformers.event_stream import EventStream
from services.llm.transformers.generation import STOPPING, Job
from services.llm.validation import requests
from services.llm.validation.messages import read_messages
from services.llm.validation.options import flag
from services.llm.validation.prompt_suffix import read_prompt_suffix
from services.llm.validation.requests import Capabilities, Work
from services.llm.validation.tool_choice import IGNORED

log = structlog.get_logger(__name__)

MAX_TOKENS_IN = 1_000_000


class GenerationFailed(ApiError):
    """The engine failed during a response."""

    code = "generation_failed"


class ServiceStopping(ApiError):
    """The service stops, and the response did not finish within STOP_GRACE."""

    status = 503
    code = "service_stopping"

    def __init__(self) -> None:
        super().__init__(INTERRUPTED)


def create_routes(service: ModelService[Any], settings: LlmSettings, engine: TransformersEngine) -> FastAPI:
    """Create the engine's application. API keys are checked before it."""
    app = create_app(title="transformers", settings=settings, metrics=service.metrics, keys=KeyRing([], variable=""))

    async def body_of(request: Request) -> dict[str, Any]:
        limit = limited(request, limit_mb=settings.max_body_mb, setting="MAX_BODY_MB")
        return requests.parse(await limit.body())

    async def respond(
        request: Request,
        route: Route,
        read: Callable[[dict[str, Any], Capabilities], Work],
        format_for: Callable[[dict[str, Any], Work], response_formats.ResponseFormat],
    ) -> HttpResponse:
        body = await body_of(request)
        work = read(body, engine.capabilities)
        service.check_model(work.model)
        job = engine.admit(route, work)
        response_format = format_for(body, work)
        headers = IGNORED if work.ignores_tools else {}
        del body  # with images, many megabytes
        try:
            if not work.stream:
                content = await cancel_on_disconnect(request, _collect(engine, route, work, job, response_format))
                job.cancel()
                return JSONResponse(content, headers=headers)
            events = await cancel_on_disconnect(request, engine.start(route, work, job))
        except BaseException:
            job.cancel()
            raise
        return EventStream(_stream(events, job, response_format), headers, on_end=job.cancel)

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> HttpResponse:
        return await respond(
            request, "chat", requests.chat, lambda _, work: response_formats.Chat(include_usage=work.include_usage)
        )

    @app.post("/v1/completions")
    async def completions(request: Request) -> HttpResponse:
        return await respond(
            request,
            "completion",
            requests.completion,
            lambda _, work: response_formats.Completion(include_usage=work.include_usage),
        )

    @app.post("/v1/responses")
    async def responses(request: Request) -> HttpResponse:
        return await respond(request, "response", requests.response, lambda body, _: response_formats.Response(body))

    @app.post("/v1/messages")
    @app.post("/v1/messages/count_tokens")
    async def messages() -> None:
        raise NotFound(
            "The transformers engine does not support the Messages API. Send POST /v1/chat/completions, or use a model "
            "that vLLM serves."
        )

    @app.post("/tokenize")
    async def tokenize(request: Request) -> JSONResponse:
        body = await body_of(request)
        service.check_model(requests.model_name(body))
        tokens = await _tokenize(engine, body)
        strings = engine.token_strings(tokens) if flag(body, "return_token_strs") else None
        return JSONResponse(
            {
                "count": len(tokens),
                "max_model_len": engine.generations.limits.context,
                "tokens": tokens,
                "token_strs": strings,
            }
        )

    @app.post("/detokenize")
    async def detokenize(request: Request) -> JSONResponse:
        body = await body_of(request)
        service.check_model(requests.model_name(body))
        tokens = body.get("tokens")
        if not isinstance(tokens, list) or not all(type(token) is int and token >= 0 for token in tokens):
            raise InvalidRequest("tokens must be a list of token ids.", param="tokens")
        if len(tokens) > MAX_TOKENS_IN:
            raise InvalidRequest(f"tokens has {len(tokens)} ids; the limit is {MAX_TOKENS_IN}.", param="tokens")
        return JSONResponse({"prompt": await engine.detokenize(tokens)})

    return app


async def _collect(
    engine: TransformersEngine, route: Route, work: Work, job: Job, response_format: response_formats.ResponseFormat
) -> dict[str, Any]:
    async with contextlib.aclosing(_events(await engine.start(route, work, job))) as events:
        async for event in events:
            response_format.add(event, truncated=job.finish_reason == "length")
    if job.error is not None:
        raise _failed(job)
    return response_format.body()


async def _stream(
    texts: AsyncIterator[str], job: Job, response_format: response_formats.ResponseFormat
) -> AsyncIterator[bytes]:
    async with contextlib.aclosing(_events(texts)) as events:
        async for event in events:
            for out in response_format.stream(event, truncated=job.finish_reason == "length"):
                yield response_formats.encode(out)
    if job.error is not None and response_format.ends_with_done:
        yield b"data: " + json.dumps(_failed(job).body()).encode() + b"\n\n"
    if response_format.ends_with_done:
        yield response_formats.DONE


async def _events(texts: Any) -> AsyncGenerator[dict[str, Any], None]:
    async with contextlib.aclosing(texts):
        async for text in texts:
            for event in response_formats.read_events(text):
                yield event


def _failed(job: Job) -> ApiError:
    if job.error == STOPPING:
        return ServiceStopping()
    log.error("response failed", id=job.id, reason=job.error)
    return GenerationFailed(f"The engine failed during this response: {job.error}. See the service's log.")


async def _tokenize(engine: TransformersEngine, body: dict[str, Any]) -> list[int]:
    if body.get("messages") is not None:
        return await engine.tokenize(
            None,
            read_messages(body["messages"], images=False),
            **read_prompt_suffix(body),
            **requests.template_arguments(body.get("chat_template_kwargs")),
        )
    prompt = body.get("prompt")
    if not isinstance(prompt, str):
        raise InvalidRequest("Send prompt (a string) or messages (a list).", param="prompt")
    return await engine.tokenize(prompt, [], add_special_tokens=flag(body, "add_special_tokens", True))
