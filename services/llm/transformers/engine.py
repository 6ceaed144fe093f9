"""Engine without CUDA: transformers' serving handlers on one loaded model, with continuous batching."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any, Literal

import structlog

from kit.errors import ApiError, InvalidRequest
from services.llm.images.decoding import check_count, decode
from services.llm.images.source import ImageSource
from services.llm.transformers.generation import Generations, Job, Runner
from services.llm.transformers.model import Loaded
from services.llm.validation.messages import image_parts
from services.llm.validation.prompt_suffix import PromptSuffixOverride
from services.llm.validation.requests import Capabilities, Work

log = structlog.get_logger(__name__)

Route = Literal["chat", "completion", "response"]
PREFIXES: dict[Route, str] = {"chat": "chatcmpl-", "completion": "cmpl-", "response": ""}


class TransformersEngine:
    """Handlers of one loaded model. Create it on the event loop."""

    def __init__(
        self, loaded: Loaded, name: str, generations: Generations, images: ImageSource, *, batched: bool
    ) -> None:
        self.name = "transformers"
        self.device = loaded.device
        self.loaded = loaded
        self.app: Any = None
        self.generations = generations
        self._images = images
        self._handlers = _handlers(loaded, name, generations, batched=batched)
        # One thread: preparation is short compared to generation, and tokenizers are not thread-safe.
        self._preparing = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prepare")
        template = getattr(loaded.tokenizer, "chat_template", None) or getattr(loaded.processor, "chat_template", None)
        self.capabilities = Capabilities(
            model=name,
            images=loaded.vision,
            tools="tools" in str(template or "") and _parses_tools(loaded),
            defaults=loaded.defaults,
        )

    def admit(self, route: Route, work: Work) -> Job:
        """Admit a request; the caller must `cancel` the job at the end. Raises Busy if the queue is full."""
        job = Job(PREFIXES[route] + secrets.token_hex(12), work.options)
        self.generations.admit(job)
        return job

    async def start(self, route: Route, work: Work, job: Job) -> AsyncIterator[str]:
        """Start a response and return the stream of the handler's output.

        Raises InvalidRequest if the template rejects the messages, an image is corrupt, or the prompt is too long.
        """
        parts = image_parts(_messages(work))
        check_count(len(parts), self._images.limits)
        for part in parts:
            part["image_url"] = {"url": await self._images.read(part["image_url"]["url"])}
        response = await self._in_thread(self._prepare, route, work, job)
        iterator: AsyncIterator[str] = response.body_iterator
        return iterator

    async def tokenize(self, text: str | None, messages: list[dict[str, Any]], **arguments: Any) -> list[int]:
        """Return the tokens of a text, or of a chat rendered by its template."""
        tokens: list[int] = await self._in_thread(self._tokenize, text, messages, arguments)
        return tokens

    async def detokenize(self, tokens: list[int]) -> str:
        """Return the text of tokens, including special ones."""
        size = len(self.loaded.tokenizer)
        if any(token >= size for token in tokens):
            raise InvalidRequest(f"tokens must be below {size}, the size of this model's vocabulary.", param="tokens")
        text: str = await self._in_thread(self.loaded.tokenizer.decode, tokens)
        return text

    def token_strings(self, tokens: list[int]) -> list[str]:
        """Return the tokens as strings of the vocabulary."""
        strings: list[str] = self.loaded.tokenizer.convert_ids_to_tokens(tokens)
        return strings

    async def interrupt(self) -> None:
        """End all responses in progress with an error event."""
        self.generations.interrupt()

    async def aclose(self) -> None:
        """Stop the runner; responses in progress fail."""
        await self.generations.runner.aclose()
        await self._images.aclose()
        self._preparing.shutdown(wait=False, cancel_futures=True)

    async def _in_thread(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._preparing, function, *arguments)

    def _prepare(self, route: Route, work: Work, job: Job) -> Any:
        images = image_parts(_messages(work))
        try:
            for part in images:
                part["image_url"] = {"url": decode(part["image_url"]["url"], self._images.limits)}
            with _ClientErrors():
                return _without_waiting(self._handlers[route].handle_request(work.body, job.id))
        finally:
            # The model's inputs are complete; decoded images of waiting requests would fill the memory.
            for part in images:
                part["image_url"] = {}

    def _tokenize(self, text: str | None, messages: list[dict[str, Any]], arguments: dict[str, Any]) -> list[int]:
        with _ClientErrors():
            if text is not None:
                plain: list[int] = self.loaded.tokenizer(text, **arguments).input_ids
                return plain
            flat = [{**message, "content": _flat(message["content"])} for message in messages]
            chat = self.loaded.tokenizer.apply_chat_template(flat, tokenize=True, return_dict=True, **arguments)
            return list(chat["input_ids"])


class _ClientErrors:
    """Converts transformers' errors during the preparation of a request into client errors."""

    def __enter__(self) -> None:
        """Nothing to do yet."""

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        from fastapi import HTTPException
        from jinja2 import TemplateError

        if isinstance(error, ApiError):
            return
        if isinstance(error, HTTPException) and error.status_code < 500:
            raise InvalidRequest(str(error.detail)) from error
        if isinstance(error, TemplateError):
            raise InvalidRequest(
                f"The model's chat template rejects these messages: {error.message}.", param="messages"
            ) from error
        if isinstance(error, ValueError):
            raise InvalidRequest(f"The request could not be prepared for the model: {error}.") from error


def _without_waiting(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a handler's coroutine, which does not await while it prepares a streamed response."""
    try:
        coroutine.send(None)
    except StopIteration as finished:
        return finished.value
    coroutine.close()
    raise RuntimeError("transformers' handler awaited during preparation; this version is not supported")


def _messages(work: Work) -> list[dict[str, Any]]:
    messages = work.body.get("messages") or work.body.get("input")
    return messages if isinstance(messages, list) else []


def _flat(content: str | list[dict[str, Any]]) -> str:
    return content if isinstance(content, str) else " ".join(part.get("text", "") for part in content)


def _parses_tools(loaded: Loaded) -> bool:
    from transformers.cli.serving.utils import get_response_template

    return get_response_template(loaded.processor, loaded.model) is not None


def _handlers(loaded: Loaded, name: str, generations: Generations, *, batched: bool) -> dict[Route, Any]:
    """Create transformers' handlers for one model and validated requests."""
    from transformers.cli.serving.chat_completion import ChatCompletionHandler
    from transformers.cli.serving.completion import CompletionHandler
    from transformers.cli.serving.response import ResponseHandler
    from transformers.cli.serving.utils import Modality

    modality = Modality.VLM if loaded.vision else Modality.LLM
    models: Any = SimpleNamespace(get_model_modality=lambda *_, **__: modality)
    state: Any = SimpleNamespace(
        use_continuous_batching=lambda *_: batched, get_manager=lambda *_, **__: _Manager(generations)
    )
    handlers: dict[Route, Any] = {
        "chat": ChatCompletionHandler(models, state),
        "completion": CompletionHandler(models, state),
        "response": ResponseHandler(models, state),
    }
    for handler in handlers.values():
        handler._validate_request = lambda _body: None
        handler._resolve_model = lambda body: (name, loaded.model, _processor(loaded, body))
        handler._build_generation_config = lambda *_, **__: SimpleNamespace(max_new_tokens=None)
    return handlers


def _processor(loaded: Loaded, body: dict[str, Any]) -> Any:
    suffix = body.get("prompt_suffix")
    return PromptSuffixOverride(loaded.processor, suffix) if suffix else loaded.processor


class _Manager:
    """Generation manager of a handler."""

    def __init__(self, generations: Generations) -> None:
        self.generate_streaming = generations.generate_streaming

    def init_cb(self, model: object, gen_config: object) -> None:
        """Do nothing: the batch is already running."""


class TokenizerTools:
    """`StreamTools` with the tokenizer and transformers' handlers."""

    def __init__(self, loaded: Loaded) -> None:
        self._backend = loaded.tokenizer._tokenizer

    def prompt_tokens(self, inputs: Any) -> list[int]:
        """Return the token ids of a prepared prompt."""
        ids = inputs["input_ids"]
        flat: list[int] = ids if isinstance(ids, list) else ids.flatten().tolist()
        return flat

    def decoder(self, skip_special: bool) -> Callable[[int], str | None]:
        """Return a function that maps the next token to the text it completes."""
        from tokenizers.decoders import DecodeStream

        stream = DecodeStream([], skip_special_tokens=skip_special)
        return lambda token: stream.step(self._backend, token)

    def events_to_pieces(self, events: Any) -> list[Any]:
        """Convert a response parser's events to items of the handlers' queue."""
        from transformers.cli.serving.utils import response_events_to_chunks

        return response_events_to_chunks(events)

    def failure(self, message: str) -> Any:
        """Return the item that the handlers treat as a failure."""
        from transformers.cli.serving.utils import _StreamError

        return _StreamError(message)


async def make_runner(
    loaded: Loaded, *, cache: int, max_concurrent: int, on_engine_failed: Callable[[str], None]
) -> tuple[Runner, bool]:
    """Return the runner for a model, and whether it batches."""
    from services.llm.transformers.batched import Batched
    from services.llm.transformers.serial import Serial

    loop = asyncio.get_running_loop()
    if not loaded.vision and hasattr(loaded.model, "init_continuous_batching"):
        try:
            batched = Batched(
                loaded.model, cache_tokens=cache, max_concurrent=max_concurrent, on_engine_failed=on_engine_failed
            )
        except (ValueError, NotImplementedError, AttributeError, TypeError) as error:
            log.warning("model does not support batching; requests are processed one by one", reason=str(error))
        else:
            batched.attach(loop)
            return batched, True
    return Serial(loaded.model, loop=loop), False
