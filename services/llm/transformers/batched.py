"""Runner for many responses at once: transformers' continuous batching with our own sampling.

Continuous batching samples all requests with one configuration and one random generator. But its logits processor can
be replaced: ours runs each request's own sampler and gives the sampled token the highest score.
"""

import asyncio
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from services.llm.transformers.generation import Run

if TYPE_CHECKING:
    import torch

STOP_S = 10.0
PAGE_TOKENS = 256
# Prompt tokens per step: more delays responses in progress, fewer delays new ones.
STEP_TOKENS = 512
OnEngineFailed = Callable[[str], None]


class Batched:
    """Runner on transformers' own thread, which reports to the event loop."""

    def __init__(self, model: Any, *, cache_tokens: int, max_concurrent: int, on_engine_failed: OnEngineFailed) -> None:
        """Allocate the cache and start the thread; blocks. Call `attach` before the first `start`.

        Raises transformers' errors for models that cannot be batched.
        """
        from transformers import GenerationConfig
        from transformers.generation.configuration_utils import ContinuousBatchingConfig

        config = ContinuousBatchingConfig(
            page_size=PAGE_TOKENS,
            num_blocks=max(1, -(-cache_tokens // PAGE_TOKENS)),
            max_batch_tokens=STEP_TOKENS,
            max_requests_per_batch=max_concurrent,
            # Both would need the sampling to be a part of a captured graph.
            use_cuda_graph=False,
            use_async_batching=False,
        )
        untyped: Any = GenerationConfig
        greedy = untyped(do_sample=False, eos_token_id=-1, pad_token_id=0, max_new_tokens=cache_tokens)
        self._rows = RowSampling()
        self._runs: dict[str, Run] = {}
        self._given: dict[str, int] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._on_engine_failed = on_engine_failed
        self._manager: Any = model.init_continuous_batching(generation_config=greedy, continuous_batching_config=config)
        self._manager.logit_processor = self._rows
        self._manager.output_router = _Router(self._deliver)
        self._manager.start()

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Set the event loop for the callbacks."""
        self._loop = loop

    def start(self, run: Run) -> None:
        """Add `run` to the batch."""
        fatal = self._manager.background_thread_status.fatal_error
        if fatal is not None:
            run.ended(str(fatal))
            return
        self._runs[run.id] = run
        self._rows.samplers[run.id] = run.sampler
        accepted = self._manager.add_request(
            run.inputs["input_ids"],
            request_id=run.id,
            max_new_tokens=run.max_tokens,
            streaming=True,
            eos_token_id=list(run.ends) or [-1],
        )
        if accepted is None:
            self._forget(run.id)
            run.ended("the service is stopping")

    def cancel(self, run: Run) -> None:
        """Remove `run` from the batch before its next step."""
        if self._forget(run.id) is not None:
            self._manager.cancel_request(run.id)

    async def aclose(self) -> None:
        """Fail the remaining runs and stop the thread."""
        stop = functools.partial(self._manager.stop, block=True, timeout=STOP_S, hard_stop=True)
        await asyncio.to_thread(stop)

    def _deliver(self, outputs: list[Any]) -> None:
        """Called by the worker thread with new outputs."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._take, outputs)

    def _take(self, outputs: list[Any]) -> None:
        for output in outputs:
            run = self._runs.get(output.request_id)
            if run is None:
                continue
            given = self._given.get(run.id, 0)
            self._given[run.id] = len(output.generated_tokens)
            finished = output.is_finished()
            if finished or output.error is not None:
                self._forget(run.id)
            run.tokens(output.generated_tokens[given:])
            if output.error is not None:
                run.ended(str(output.error))
                self._check_alive()
            elif finished:
                run.ended(None)

    def _forget(self, run_id: str) -> Run | None:
        self._given.pop(run_id, None)
        self._rows.samplers.pop(run_id, None)
        return self._runs.pop(run_id, None)

    def _check_alive(self) -> None:
        fatal = self._manager.background_thread_status.fatal_error
        if fatal is not None:
            self._on_engine_failed(f"continuous batching failed: {fatal}. Restart the service.")


class _Router:
    """Replaces transformers' output router."""

    def __init__(self, deliver: Callable[[list[Any]], None]) -> None:
        self.deliver_batch = deliver

    def deliver(self, output: Any) -> None:
        """Deliver one output."""
        self.deliver_batch([output])

    def fail_and_deliver(self, state: Any, error: Exception) -> None:
        """Deliver the failure of a request that was not added to the batch."""
        from transformers.generation.continuous_batching.requests import RequestStatus

        state.status = RequestStatus.FAILED
        state.error = str(error)
        self.deliver(state.to_generation_output())


class RowSampling:
    """Replaces transformers' logits processors; called by the worker thread.

    Each step first announces the requests that get a token, in order, then passes their scores, one row each; in each
    row the sampled token gets the highest score.
    """

    # Attributes of transformers' class: whether it is active, and its number of argument tensors.
    do_processing = True
    tensors_required = 0

    def __init__(self) -> None:
        self.samplers: dict[str, Any] = {}
        self._next: list[str] = []

    def check_kwargs(self, kwargs: dict[str, Any]) -> None:
        """Do nothing."""

    def fill_defaults(self, int32_tensor: "torch.Tensor") -> None:
        """Do nothing."""

    def clear(self) -> None:
        """Do nothing."""

    def prepare_tensor_args(self, requests_in_batch: list[Any], arg_storage: "torch.Tensor") -> "torch.Tensor":
        """Record the requests that get a token in the next step."""
        self._next = [request.state.request_id for request in requests_in_batch if request.has_new_token]
        return arg_storage

    def __call__(self, input_ids: "torch.Tensor", scores: "torch.Tensor", arguments: "torch.Tensor") -> "torch.Tensor":
        """Sample a token per row and give it the highest score."""
        import torch

        for row, request_id in zip(scores, self._next, strict=False):
            sampler = self.samplers.get(request_id)
            if sampler is None:  # just cancelled; its token is dropped
                continue
            token = sampler.choose(row)
            row[token] = torch.inf
        return scores
