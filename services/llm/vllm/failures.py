"""Causes of a failed start of vLLM, explained with their remedy.

The model loads in child processes, whose errors only reach their logs; the parent reports "engine core initialization
failed". So the children's errors are also logged to a file and read from there.
"""

import json
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

# Precedes each record, which may have many lines.
MARK = "\x1e"
VARIABLE = "VLLM_LOGGING_CONFIG_PATH"
# vLLM's defaults (vllm/logger.py).
FORMAT = "(%(vllm_process_name)s pid=%(process)d) %(levelname)s %(asctime)s [%(fileinfo)s:%(lineno)d] %(message)s"
DATES = "%m-%d %H:%M:%S"

_EXCEPTION = re.compile(r"^[A-Za-z_][\w.]*(?:Error|Exception|Exit|Interrupt|Warning)\b", re.MULTILINE)
_VALIDATION = re.compile(r"Value error, (?P<message>.*?) \[type=", re.DOTALL)
_SIZE = r"[\d.,]+ [KMGT]?i?B"
# Out-of-memory messages of vLLM and PyTorch: v1/worker/utils.py, v1/core/kv_cache_utils.py, CUDACachingAllocator.cpp.
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
# Logged by the worker after it has loaded and profiled the model; negative if the model is too large.
WORKER = "vllm.v1.worker.gpu_worker"
_LEFT = re.compile(r"Available KV cache memory: (?P<left>-?[\d.]+) GiB")
_NOTHING_LEFT = re.compile(r"No available memory for the cache blocks|to serve even a single token")
WHERE = "(in ENGINE_ARGS or engine_args of models.yaml)"


class StartErrors:
    """Errors of vLLM's processes during one start. Create it before vLLM is imported."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="vllm-causes-"))
        self._errors = self._folder / "errors"
        self._worker = self._folder / "worker"
        # A logging configuration of the user is kept; errors then have only vLLM's message.
        if VARIABLE not in os.environ:
            config = self._folder / "logging.json"
            config.write_text(json.dumps(self._logging()))
            os.environ[VARIABLE] = str(config)

    def first(self) -> str | None:
        """Return the first logged exception with its message, or None."""
        for record in _read(self._errors).split(MARK):
            found = list(_EXCEPTION.finditer(record))
            if found:
                return record[found[-1].start() :].strip()
        return None

    def cache_gib(self) -> float | None:
        """Return the GiB available for the KV cache, negative if the model does not fit; None if not logged."""
        # The minimum over all GPUs.
        return min((float(left) for left in _LEFT.findall(_read(self._worker))), default=None)

    def close(self) -> None:
        """Remove the files. Call it after vLLM's processes have ended."""
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
                    # Only errors of the start are read; later ones must not fill the disk.
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
    """Return a message for a start that failed with `error`, caused by `cause` in a child process, if known.

    `cache_gib` is the memory available for the KV cache, if known.
    """
    message = cause or str(error) or type(error).__name__
    invalid = _VALIDATION.search(message)
    return _out_of_memory(message, "" if cpu else "GPU ", cache_gib) or (invalid["message"] if invalid else message)


def _out_of_memory(message: str, kind: str, cache_gib: float | None) -> str | None:
    if found := _SHARE.search(message):
        return (
            f"Out of {kind}memory: {found['needed']} GiB are needed (gpu_memory_utilization {found['share']} of "
            f"{found['total']} GiB) and {found['had']} GiB are free. Another process uses this GPU: give the service "
            "another one (device_ids in the compose file), or lower gpu_memory_utilization, and max_model_len too if "
            f"the model then does not fit {WHERE}."
        )
    if found := _CONTEXT.search(message):
        fits = f" {found['fits']} tokens fit." if found["fits"] else ""
        return (
            f"Out of {kind}memory: one request of max_model_len {found['length']} tokens needs {found['needed']} GiB "
            f"of cache, and the weights leave {found['had']} GiB.{fits} Lower max_model_len, raise "
            f"gpu_memory_utilization, or set kv_cache_dtype to fp8 {WHERE}."
        )
    if found := _ALLOCATION.search(message):
        return (
            f"Out of {kind}memory: {found['needed']} more are needed, and {found['had']} of {found['total']} are "
            "free. Lower gpu_memory_utilization if the model was already loaded, lower max_num_seqs, or set "
            f"quantization or tensor_parallel_size if the weights alone are too large {WHERE}."
        )
    if _NOTHING_LEFT.search(message):
        missing = "" if cache_gib is None or cache_gib > 0 else f" and need {-cache_gib:g} GiB more than available"
        return (
            f"Out of {kind}memory: the weights leave no room for the KV cache{missing}. Raise gpu_memory_utilization, "
            f"set quantization for smaller weights, or tensor_parallel_size for more GPUs {WHERE}."
        )
    return None
