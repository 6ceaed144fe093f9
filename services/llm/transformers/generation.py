"""Generation of one response: from prompt tokens to pieces of text.

`Generations` replaces the generation manager of transformers' serving handlers, which still parse tool calls and
reasoning; limits, stop conditions and cancellation are implemented here.
"""

import asyncio
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from kit.errors import Busy, InvalidRequest
from services.llm.transformers.sampling import Sampler
from services.llm.transformers.stop_strings import StopStrings
from services.llm.transformers.token_metrics import TokenMetrics
from services.llm.validation.options import Options

FinishReason = Literal["stop", "length"]
STOPPING = "the service is stopping and did not finish this response in time"


class Runner(Protocol):
    """Computes tokens. All methods are called on the event loop and return at once."""

    def start(self, run: "Run") -> None:
        """Start; call `run.tokens` and, at the end, `run.ended` on the event loop."""
        ...

    def cancel(self, run: "Run") -> None:
        """Stop `run`; none of its callbacks is called any more. Idempotent."""
        ...

    async def aclose(self) -> None:
        """Stop all runs and the thread."""
        ...


@dataclass(eq=False)
class Run:
    """Input of a runner for one response, and its callbacks."""

    id: str
    inputs: Any
    sampler: Sampler
    max_tokens: int
    ends: tuple[int, ...]
    tokens: Callable[[Sequence[int]], None]
    ended: Callable[[str | None], None]


@dataclass(eq=False)
class Job:
    """One request and the outcome of its generation. Its creator calls `cancel` at the end."""

    id: str
    options: Options
    finish_reason: FinishReason | None = None
    error: str | None = None
    _cancels: list[Callable[[], None]] = field(default_factory=list)
    cancelled: bool = False

    def on_cancel(self, action: Callable[[], None]) -> None:
        """Call `action` on `cancel`, or now if already cancelled."""
        if self.cancelled:
            action()
        else:
            self._cancels.append(action)

    def cancel(self) -> None:
        """Stop the generation if it is running. Idempotent; event loop only."""
        self.cancelled = True
        while self._cancels:
            self._cancels.pop()()


@dataclass(frozen=True)
class Limits:
    """Limits of the service: context in tokens, default response length, concurrent and queued requests."""

    context: int
    default_max_tokens: int
    max_concurrent: int
    max_queue: int


class Generations:
    """All generations of one engine. The handlers call `generate_streaming` from a thread."""

    def __init__(
        self, runner: Runner, limits: Limits, *, ends: Sequence[int], tools: "StreamTools", metrics: TokenMetrics
    ) -> None:
        self.limits = limits
        self.runner = runner
        self._ends = tuple(ends)
        self._tools = tools
        self._metrics = metrics
        self._loop = asyncio.get_running_loop()
        self._jobs: dict[str, Job] = {}
        # Functions that end a response in progress with an error.
        self._failing: dict[str, Callable[[str], None]] = {}

    @property
    def in_flight(self) -> int:
        """Number of admitted requests."""
        return len(self._jobs)

    def admit(self, job: Job) -> None:
        """Admit `job` until its `cancel`. Raises Busy if the queue is full."""
        room = self.limits.max_concurrent + self.limits.max_queue
        if len(self._jobs) >= room:
            raise Busy(
                f"The queue is full: {len(self._jobs)} requests are in flight (MAX_CONCURRENT plus MAX_QUEUE). Retry "
                "shortly.",
                retry_after=2,
            )
        self._jobs[job.id] = job
        job.on_cancel(functools.partial(self._release, job.id))

    def interrupt(self) -> None:
        """End all responses in progress with an error, because the service stops."""
        for fail in list(self._failing.values()):
            fail(STOPPING)

    def _release(self, job_id: str) -> None:
        self._jobs.pop(job_id, None)
        self._failing.pop(job_id, None)

    def generate_streaming(
        self,
        model: object,  # the handlers' interface; there is one model here
        processor: object,  # likewise
        inputs: Any,
        gen_config: Any,
        request_id: str,
        response_parser: Any = None,
    ) -> tuple["asyncio.Queue[Any]", "Pieces"]:
        """Start a generation. Return the queue of its pieces and the object that counts and cancels.

        Raises InvalidRequest if the prompt fills the context.
        """
        job = self._jobs[request_id]
        prompt = self._tools.prompt_tokens(inputs)
        gen_config.max_new_tokens = max_tokens = self._room(len(prompt), job.options)
        ends = () if job.options.ignore_eos else self._ends
        decode = self._tools.decoder(response_parser is None)
        pieces = Pieces(job, gen_config, decode, response_parser, self._tools, ends)
        sampler = Sampler(job.options.sampling, prompt=prompt, ends=self._ends)
        tokens = self._metrics.follow(len(prompt), pieces.take)
        run = Run(job.id, inputs, sampler, max_tokens, ends, tokens, pieces.end)
        pieces.stop_computing = lambda: self.runner.cancel(run)
        self._loop.call_soon_threadsafe(self._begin, job, run)
        return pieces.queue, pieces

    def _begin(self, job: Job, run: Run) -> None:
        if not job.cancelled:
            job.on_cancel(lambda: self.runner.cancel(run))
            self._failing[job.id] = functools.partial(self._fail, run)
            self.runner.start(run)

    def _fail(self, run: Run, reason: str) -> None:
        self.runner.cancel(run)
        run.ended(reason)

    def _room(self, prompt: int, options: Options) -> int:
        context = self.limits.context
        if prompt == 0:
            raise InvalidRequest("The prompt is empty.")
        if prompt >= context:
            raise InvalidRequest(
                f"The prompt has {prompt} tokens, and this model's context is {context} tokens. Shorten the prompt.",
                code="context_length_exceeded",
            )
        # Reduced to the available context, as in vLLM: clients send the same limit to every model.
        return min(options.max_tokens or self.limits.default_max_tokens, context - prompt)


class StreamTools(Protocol):
    """Functions of the tokenizer and transformers, which this module does not import."""

    def prompt_tokens(self, inputs: Any) -> list[int]:
        """Return the token ids of a prepared prompt."""
        ...

    def decoder(self, skip_special: bool) -> Callable[[int], str | None]:
        """Return a function that maps the next token to the text it completes."""
        ...

    def events_to_pieces(self, events: Any) -> list[Any]:
        """Convert a response parser's events to items of the handlers' queue."""
        ...

    def failure(self, message: str) -> Any:
        """Return the queue item that signals an error to the handlers."""
        ...


class Pieces:
    """Converts tokens into the pieces that the handler reads from `queue`; None is the end. Event loop only."""

    def __init__(
        self,
        job: Job,
        gen_config: Any,
        decode: Callable[[int], str | None],
        parser: Any,
        tools: StreamTools,
        ends: Sequence[int],
    ) -> None:
        self.queue: asyncio.Queue[Any] = asyncio.Queue()
        self.total_tokens = 0
        self.stop_computing: Callable[[], None] = lambda: None
        self._job = job
        self._config = gen_config
        self._decode = decode
        self._parser = parser
        self._tools = tools
        self._stops = StopStrings(job.options.stop)
        self._done = False
        self._ends = ends
        self._last = -1
        if parser is not None:
            self._put(tools.events_to_pieces(parser.initial_events))

    def take(self, tokens: Sequence[int]) -> None:
        """Process the next tokens."""
        for token in tokens:
            if self._done:
                return
            self.total_tokens += 1
            self._last = token
            text = self._decode(token)
            if text:
                self._put([text] if self._parser is None else self._tools.events_to_pieces(self._parser.feed(text)))
            if self._stops.stopped:
                self.stop_computing()
                self._finish("stop")

    def end(self, error: str | None) -> None:
        """End the response, with `error` if it failed."""
        if self._done:
            return
        if error is not None:
            self._done = True
            self._job.error = error
            self.queue.put_nowait(self._tools.failure(error))
            return
        if self._parser is not None:
            try:
                _, events = self._parser.finalize()
            except (ValueError, RuntimeError):
                events = []  # the limit was reached in a tool call, which is dropped
            self._put(self._tools.events_to_pieces(events))
        rest = self._stops.flush()
        if rest:
            self.queue.put_nowait(rest)
        cut = self.total_tokens >= self._config.max_new_tokens and self._last not in self._ends
        self._finish("length" if cut else "stop")

    def cancel(self) -> None:
        """Called by the handler when the client disconnects."""
        self._job.cancel()

    def _put(self, items: list[Any]) -> None:
        for item in items:
            # Stop strings apply to plain text only; reasoning and tool calls have other types.
            piece = self._stops.feed(item) if type(item) is str else item
            if piece and not (self._stops.stopped and type(item) is not str):
                self.queue.put_nowait(piece)

    def _finish(self, reason: FinishReason) -> None:
        self._done = True
        self._job.finish_reason = reason
        if reason == "stop":
            # The handler reports `length` at this number of tokens, even if the last one is an end token.
            self._config.max_new_tokens = None
        self.queue.put_nowait(None)
