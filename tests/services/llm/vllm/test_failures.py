"""Explanation of failed starts, with real messages of vLLM and PyTorch."""

import json
import logging
import logging.config
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.llm.vllm.failures import VARIABLE, WORKER, StartErrors, explain

FAILED = RuntimeError("Engine core initialization failed. See root cause above. Failed core proc(s): {'EngineCore': 1}")
SHARE = (
    "ValueError: Free memory on device cuda:0 (3.21/79.18 GiB) on startup is less than desired GPU memory utilization "
    "(0.92, 72.85 GiB). Decrease GPU memory utilization or reduce GPU memory used by other processes."
)
CONTEXT = (
    "ValueError: To serve at least one request with the model's max seq len (131072), (16.0 GiB KV cache is needed, "
    "which is larger than the available KV cache memory (5.51 GiB). Based on the available memory, the estimated "
    "maximum model length is 45136. Try increasing `gpu_memory_utilization` (which also controls CPU memory on the CPU "
    "backend) or decreasing `max_model_len` when initializing the engine. See https://docs.vllm.ai/ for more details."
)
ALLOCATION = (
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 448.00 MiB. GPU 0 has a total capacity of 14.56 GiB "
    "of which 161.81 MiB is free. Including non-PyTorch memory, this process has 14.40 GiB memory in use."
)
NOTHING = "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization` when ..."


@pytest.fixture(autouse=True)
def nothing_configured(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Reset vLLM's logging before and after each test."""
    monkeypatch.setenv(VARIABLE, "")
    monkeypatch.delenv(VARIABLE)
    yield
    for logger in (logging.getLogger("vllm"), logging.getLogger(WORKER)):
        for handler in logger.handlers:
            handler.close()
        logger.handlers, logger.propagate = [], True


@pytest.mark.parametrize(
    ("cause", "needed", "had", "settings"),
    [
        (SHARE, "72.85 GiB", "3.21 GiB", ["device_ids", "gpu_memory_utilization", "max_model_len"]),
        (CONTEXT, "16.0 GiB", "5.51 GiB", ["max_model_len", "gpu_memory_utilization", "kv_cache_dtype"]),
        (ALLOCATION, "448.00 MiB", "161.81 MiB", ["gpu_memory_utilization", "max_num_seqs", "quantization"]),
        (NOTHING, "", "no room", ["gpu_memory_utilization", "quantization", "tensor_parallel_size"]),
    ],
    ids=["share", "context", "allocation", "nothing left"],
)
def test_out_of_memory_has_sizes_and_settings(cause: str, needed: str, had: str, settings: list[str]) -> None:
    message = explain(FAILED, cause, cpu=False)
    assert message.startswith("Out of GPU memory")
    assert all(part in message for part in (needed, had, *settings, "ENGINE_ARGS"))


def test_too_large_model_has_the_missing_memory() -> None:
    assert "need 1.35 GiB more than available" in explain(FAILED, NOTHING, cache_gib=-1.35, cpu=False)


def test_message_without_a_gpu_does_not_mention_one() -> None:
    assert explain(FAILED, CONTEXT, cpu=True).startswith("Out of memory: one request")


def test_context_that_fits_is_reported() -> None:
    assert "45136 tokens fit" in explain(FAILED, CONTEXT, cpu=False)


def test_other_errors_keep_their_message_without_pydantic_details() -> None:
    assert explain(FAILED, "KeyError: 'model.layers'", cpu=False) == "KeyError: 'model.layers'"
    assert explain(FAILED, None, cpu=False) == str(FAILED)
    error = ValueError(
        "1 validation error for ModelConfig\n  Value error, Model architectures ['X'] are not supported. "
        "[type=value_error, input_value=ArgsKwargs((), {}), input_type=ArgsKwargs]\n    For further information visit"
    )
    assert explain(error, None, cpu=False) == "Model architectures ['X'] are not supported."


def vllm_logs(errors: StartErrors) -> logging.Logger:
    """Return the logger of a vLLM process, configured by the file in its environment."""
    config = json.loads(Path(os.environ[VARIABLE]).read_text())
    config["formatters"]["vllm"] = {"format": "%(message)s"}
    logging.config.dictConfig(config)
    assert errors.first() is None
    return logging.getLogger("vllm.v1.engine.core")


def test_first_worker_error_is_reported_as_cause() -> None:
    """The worker's error precedes the engine's, which only reports that a worker failed."""
    errors = StartErrors()
    logger = vllm_logs(errors)
    logger.warning("this is no error\nValueError: no")
    assert errors.first() is None
    for worker in ("-1.35", "-0.2"):
        logging.getLogger(WORKER).info("Available KV cache memory: %s GiB", worker)
    for error in (ValueError("Free memory\nis short"), RuntimeError("worker failed")):
        try:
            try:
                raise KeyError("earlier")
            except KeyError:
                raise error from None
        except (ValueError, RuntimeError):
            logger.exception("WorkerProc failed to start.")
    assert errors.first() == "ValueError: Free memory\nis short"
    assert errors.cache_gib() == -1.35
    errors.close()
    assert VARIABLE not in os.environ


def test_existing_logging_configuration_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "/etc/vllm-logging.json")
    errors = StartErrors()
    assert errors.first() is None
    errors.close()
    assert os.environ[VARIABLE] == "/etc/vllm-logging.json"
