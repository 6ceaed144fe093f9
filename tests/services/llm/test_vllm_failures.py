"""What is told of a vLLM that did not start: messages as vLLM and PyTorch write them, and the logs they come from."""

import json
import logging
import logging.config
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.llm.vllm_failures import VARIABLE, WORKER, Causes, explain

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
    """No logging of vLLM's is configured before or after a test."""
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
def test_memory_is_told_with_what_was_needed_and_had_and_three_settings(
    cause: str, needed: str, had: str, settings: list[str]
) -> None:
    told = explain(FAILED, cause, cpu=False)
    assert told.startswith("Out of GPU memory")
    assert all(part in told for part in (needed, had, *settings, "ENGINE_ARGS"))


def test_a_model_that_is_itself_too_large_is_told_with_what_it_lacks() -> None:
    assert "need 1.35 GiB more than there are" in explain(FAILED, NOTHING, cache_gib=-1.35, cpu=False)


def test_a_machine_without_a_gpu_is_told_of_its_memory() -> None:
    assert explain(FAILED, CONTEXT, cpu=True).startswith("Out of memory: one request")


def test_the_length_that_fits_is_told() -> None:
    assert "45136 tokens fit" in explain(FAILED, CONTEXT, cpu=False)


def test_other_causes_are_told_in_their_own_words_and_without_pydantics() -> None:
    assert explain(FAILED, "KeyError: 'model.layers'", cpu=False) == "KeyError: 'model.layers'"
    assert explain(FAILED, None, cpu=False) == str(FAILED)
    error = ValueError(
        "1 validation error for ModelConfig\n  Value error, Model architectures ['X'] are not supported. "
        "[type=value_error, input_value=ArgsKwargs((), {}), input_type=ArgsKwargs]\n    For further information visit"
    )
    assert explain(error, None, cpu=False) == "Model architectures ['X'] are not supported."


def vllm_logs(causes: Causes) -> logging.Logger:
    """The logger of a process of vLLM's, configured by the file that it is told of; its own formatter is not here."""
    config = json.loads(Path(os.environ[VARIABLE]).read_text())
    config["formatters"]["vllm"] = {"format": "%(message)s"}
    logging.config.dictConfig(config)
    assert causes.first() is None
    return logging.getLogger("vllm.v1.engine.core")


def test_the_first_error_of_a_child_is_the_cause() -> None:
    """The worker's comes before that of the engine, which only says that a worker failed."""
    causes = Causes()
    logger = vllm_logs(causes)
    logger.warning("this is no error\nValueError: no")
    assert causes.first() is None
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
    assert causes.first() == "ValueError: Free memory\nis short"
    assert causes.cache_gib() == -1.35
    causes.close()
    assert VARIABLE not in os.environ


def test_logging_that_was_configured_by_others_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "/etc/vllm-logging.json")
    causes = Causes()
    assert causes.first() is None
    causes.close()
    assert os.environ[VARIABLE] == "/etc/vllm-logging.json"
