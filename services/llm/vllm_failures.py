"""Why vLLM did not start, told so that its owner knows what to change.

The model loads in child processes, and what stops them only reaches their logs: the parent hears that "engine core
initialization failed". So the children's errors are kept in a file too, and read from there.
"""

import json
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

# Before each record, which may have many lines.
MARK = "\x1e"
VARIABLE = "VLLM_LOGGING_CONFIG_PATH"
# As vLLM writes them by itself (vllm/logger.py).
FORMAT = "(%(vllm_process_name)s pid=%(process)d) %(levelname)s %(asctime)s [%(fileinfo)s:%(lineno)d] %(message)s"
DATES = "%m-%d %H:%M:%S"

_EXCEPTION = re.compile(r"^[A-Za-z_][\w.]*(?:Error|Exception|Exit|Interrupt|Warning)\b", re.MULTILINE)
_VALIDATION = re.compile(r"Value error, (?P<message>.*?) \[type=", re.DOTALL)
_SIZE = r"[\d.,]+ [KMGT]?i?B"
# vLLM's and PyTorch's messages on memory: v1/worker/utils.py, v1/core/kv_cache_utils.py, CUDACachingAllocator.cpp.
_SHARE = re.compile(
    r"Free memory on device ?\S* ?\((?P<had>[\d.]+)/(?P<total>[\d.]+) GiB\) on startup is less than .*?"
    r"\((?P<share>[\d.]+), (?P<needed>[\d.]+) GiB\)",
    re.DOTALL,
)
_CONTEXT = re.compile(
    r"max seq len \((?P<length>\d+)\), \(?(?P<needed>[\d.]+) GiB KV cache is needed, .*?\((?P<had>[\d.]+) GiB\)"
    r"(?:.*?maximum model length is (?P<fits>\d+))?",
    re.DOTALL,
)
_ALLOCATION = re.compile(
    rf"out of memory\. Tried to allocate (?P<needed>{_SIZE})\..*?total capacity of (?P<total>{_SIZE}) of which "
    rf"(?P<had>{_SIZE}) is free",
    re.DOTALL,
)
# What the worker logs when it has loaded and tried the model: below zero where that is too large.
WORKER = "vllm.v1.worker.gpu_worker"
_LEFT = re.compile(r"Available KV cache memory: (?P<left>-?[\d.]+) GiB")
_NOTHING_LEFT = re.compile(r"No available memory for the cache blocks|to serve even a single token")
WHERE = "(in ENGINE_ARGS or engine_args of models.yaml)"


class Causes:
    """What vLLM's processes say while they start. Made before vLLM is imported; used once."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="vllm-causes-"))
        self._errors = self._folder / "errors"
        self._worker = self._folder / "worker"
        # Whoever configures vLLM's logs keeps that, and gets vLLM's own words instead of the cause.
        if VARIABLE not in os.environ:
            config = self._folder / "logging.json"
            config.write_text(json.dumps(self._logging()))
            os.environ[VARIABLE] = str(config)

    def first(self) -> str | None:
        """The first error that one of the processes wrote: its exception and message."""
        for record in _read(self._errors).split(MARK):
            found = list(_EXCEPTION.finditer(record))
            if found:
                return record[found[-1].start() :].strip()
        return None

    def cache_gib(self) -> float | None:
        """The GiB that the model left for the cache, less than zero when it was too large itself; None if untold."""
        # Of several GPUs the one that has least.
        return min((float(left) for left in _LEFT.findall(_read(self._worker))), default=None)

    def close(self) -> None:
        """Remove the files. Call when vLLM's processes have ended."""
        if os.environ.get(VARIABLE) == str(self._folder / "logging.json"):
            del os.environ[VARIABLE]
        shutil.rmtree(self._folder, ignore_errors=True)

    def _logging(self) -> dict[str, Any]:
        level = os.environ.get("VLLM_LOGGING_LEVEL", "INFO").upper()
        stream = os.environ.get("VLLM_LOGGING_STREAM", "ext://sys.stdout")
        lines = {"()": "vllm.logging_utils.NewLineFormatter", "format": FORMAT, "datefmt": DATES, "log_level": level}
        return {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"vllm": lines, "marked": {"format": f"{MARK}%(message)s"}},
            "handlers": {
                "vllm": {"class": "logging.StreamHandler", "formatter": "vllm", "level": level, "stream": stream},
                "errors": {
                    "class": "logging.handlers.RotatingFileHandler",
                    "formatter": "marked",
                    "level": "ERROR",
                    "filename": str(self._errors),
                    "delay": True,
                    # Only the start is read; a service that then runs for months must not fill the disk.
                    "maxBytes": 1_000_000,
                    "backupCount": 1,
                },
                "worker": {"class": "logging.FileHandler", "filename": str(self._worker), "delay": True},
            },
            "loggers": {
                "vllm": {"handlers": ["vllm", "errors"], "level": level, "propagate": False},
                WORKER: {"handlers": ["worker"]},
            },
        }


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""


def explain(error: BaseException, cause: str | None, *, cache_gib: float | None = None, cpu: bool) -> str:
    """What to tell of a start that failed with `error`, whose `cause` in a child process is known or not.

    `cache_gib` is what the model left for the cache, where that is known.
    """
    said = cause or str(error) or type(error).__name__
    return _memory(said, "" if cpu else "GPU ", cache_gib) or _validation(said) or said


def _validation(said: str) -> str | None:
    found = _VALIDATION.search(said)
    return found["message"] if found else None


def _memory(said: str, where: str, cache_gib: float | None) -> str | None:
    if found := _SHARE.search(said):
        return (
            f"Out of {where}memory: {found['needed']} GiB are needed (gpu_memory_utilization {found['share']} of "
            f"{found['total']} GiB) and {found['had']} GiB are free. Something else uses this GPU: give the service "
            "another one (device_ids in the compose file), lower gpu_memory_utilization, or lower max_model_len too if "
            f"the model does not fit then {WHERE}."
        )
    if found := _CONTEXT.search(said):
        fits = f" {found['fits']} tokens fit." if found["fits"] else ""
        return (
            f"Out of {where}memory: one request of max_model_len {found['length']} tokens needs {found['needed']} GiB "
            f"of cache, and the weights leave {found['had']} GiB.{fits} Lower max_model_len, raise "
            f"gpu_memory_utilization, or set kv_cache_dtype to fp8 {WHERE}."
        )
    if found := _ALLOCATION.search(said):
        return (
            f"Out of {where}memory: {found['needed']} more are needed, and {found['had']} of {found['total']} are "
            "free. Lower gpu_memory_utilization if the model had loaded already, lower max_num_seqs, or set "
            f"quantization or tensor_parallel_size where the weights alone are too large {WHERE}."
        )
    if _NOTHING_LEFT.search(said):
        told = "" if cache_gib is None or cache_gib > 0 else f" and need {-cache_gib:g} GiB more than there are"
        return (
            f"Out of {where}memory: the weights leave no room for the cache{told}. Raise gpu_memory_utilization, set "
            f"quantization for smaller weights, or tensor_parallel_size for more GPUs {WHERE}."
        )
    return None
