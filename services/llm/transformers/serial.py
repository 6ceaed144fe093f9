"""Runner for one response at a time, in a thread: for models without batching support, such as vision models."""

import asyncio
import contextlib
import threading
from collections import deque
from typing import TYPE_CHECKING, Any

import structlog

from services.llm.transformers.generation import Run

if TYPE_CHECKING:
    import torch

log = structlog.get_logger(__name__)

STOP_S = 10.0


class _Cancelled(Exception):
    """Raised inside `generate` to stop it."""


class Serial:
    """Runner around `model.generate`, in order of arrival."""

    def __init__(self, model: Any, *, loop: asyncio.AbstractEventLoop) -> None:
        self._model = model
        self._loop = loop
        self._wake = threading.Condition()
        self._waiting: deque[Run] = deque()
        self._stopping = False
        self._live: set[Run] = set()
        self._thread = threading.Thread(target=self._work, name="generate", daemon=True)
        self._thread.start()

    def start(self, run: Run) -> None:
        """Put `run` in the queue."""
        self._live.add(run)
        with self._wake:
            self._waiting.append(run)
            self._wake.notify()

    def cancel(self, run: Run) -> None:
        """Remove `run` from the queue, or stop it at its next token."""
        self._live.discard(run)
        with self._wake, contextlib.suppress(ValueError):
            self._waiting.remove(run)

    async def aclose(self) -> None:
        """Cancel everything and wait for the thread."""
        for run in list(self._live):
            run.ended("the service is stopping")
        self._live.clear()
        with self._wake:
            self._waiting.clear()
            self._stopping = True
            self._wake.notify()
        await asyncio.to_thread(self._thread.join, STOP_S)

    def _work(self) -> None:
        while (run := self._next()) is not None:
            error = self._generate(run)
            self._call(run, self._ended, run, error)
            del run  # releases its memory while the queue is empty

    def _next(self) -> Run | None:
        with self._wake:
            self._wake.wait_for(lambda: self._waiting or self._stopping)
            return self._waiting.popleft() if self._waiting else None

    def _generate(self, run: Run) -> str | None:
        import torch
        from transformers import GenerationConfig, LogitsProcessorList

        untyped: Any = GenerationConfig
        config = untyped(
            do_sample=False,
            max_new_tokens=run.max_tokens,
            eos_token_id=list(run.ends) or None,
            pad_token_id=run.ends[0] if run.ends else 0,
        )
        try:
            with torch.inference_mode():
                self._model.generate(
                    **run.inputs,
                    generation_config=config,
                    logits_processor=LogitsProcessorList([_OneRow(run)]),
                    streamer=_Streamer(self, run),
                )
        except _Cancelled:
            return None
        except Exception as error:  # fails this response, not the thread
            log.error("generation failed", exc_info=error)
            return str(error) or type(error).__name__
        return None

    def _ended(self, run: Run, error: str | None) -> None:
        if run in self._live:
            self._live.discard(run)
            run.ended(error)

    def _tokens(self, run: Run, tokens: list[int]) -> None:
        if run in self._live:
            run.tokens(tokens)

    def _call(self, run: Run, what: Any, *arguments: Any) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(what, *arguments)

    def put(self, run: Run, tokens: list[int]) -> None:
        """Pass tokens on, from the thread. Raises _Cancelled if the run was cancelled."""
        if run not in self._live:
            raise _Cancelled
        self._call(run, self._tokens, run, tokens)


class _Streamer:
    """Streamer passed to `generate`."""

    def __init__(self, serial: Serial, run: Run) -> None:
        self._serial = serial
        self._run = run
        self._prompt_received = False

    def put(self, value: "torch.Tensor") -> None:
        """Pass tokens on; the first call has the prompt."""
        tokens = [] if not self._prompt_received else [int(token) for token in value.flatten().tolist()]
        self._prompt_received = True
        self._serial.put(self._run, tokens)

    def end(self) -> None:
        """The thread reports the end itself."""


class _OneRow:
    """Logits processor that gives the sampled token the highest score."""

    def __init__(self, run: Run) -> None:
        self._sampler = run.sampler

    def __call__(self, input_ids: "torch.Tensor", scores: "torch.Tensor") -> "torch.Tensor":
        """Sample a token and give it the highest score."""
        import torch

        scores = scores.float()
        scores[0, self._sampler.choose(scores[0])] = torch.inf
        return scores
