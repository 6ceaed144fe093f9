"""vLLM's arguments: catalogue and settings, over defaults for one GPU or a CPU.

All go through vLLM's parser: every argument of `vllm serve` is available by its name, and validated at the start.
"""

import json
import os
from pathlib import Path
from typing import Any, NoReturn

from kit.config.catalogue import Entry
from kit.config.settings import SettingsError
from services.llm.memory import memory_bytes
from services.llm.vllm.media_connector import CONNECTOR
from services.llm.vllm.tool_parsers import tool_arguments

GIB = 1024**3
# KV cache on a CPU: share of the memory, and bounds in GiB.
CPU_CACHE_SHARE = 0.15
CPU_CACHE_GIB = (1, 16)
# Set by the service; other values would make it unreachable or change its names.
RESERVED = frozenset({"model", "model_tag", "served_model_name", "host", "port", "uds", "api_key", "headless", "grpc"})
TOOL_ARGUMENTS = frozenset({"tool_call_parser", "enable_auto_tool_choice"})


def environment_defaults() -> dict[str, str]:
    """Return defaults for vLLM's environment variables."""
    return {
        # Forking a process with threads is not safe.
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        # Workers often use the whole timeout, and `docker stop` waits only 10 s.
        "VLLM_WORKER_SHUTDOWN_TIMEOUT_SECONDS": "2",
        "VLLM_MEDIA_CONNECTOR": CONNECTOR,
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",  # the folder is complete
    }


def prepare_environment() -> None:
    """Set the defaults of vLLM's environment. Call it before vLLM is imported."""
    for name, value in environment_defaults().items():
        os.environ.setdefault(name, value)


def command_line(folder: Path, entry: Entry, arguments: dict[str, Any], *, cpu: bool) -> list[str]:
    """Return the arguments of `vllm serve` for the model in `folder`. Raises SettingsError for reserved arguments."""
    reserved = sorted(RESERVED & set(arguments))
    if reserved:
        raise SettingsError(f"ENGINE_ARGS must not contain {', '.join(reserved)}, which the service sets.")
    if "allowed_media_domains" in arguments:
        raise SettingsError("Use IMAGE_HOSTS instead of allowed_media_domains; it also checks addresses and redirects.")
    # vLLM's other defaults suit a dedicated GPU: 0.92 of its memory, chunked prefill, the model's chat template. -1 is
    # the model's whole context, or as much as fits into memory.
    merged: dict[str, Any] = {
        "max_model_len": entry.context_length or -1,
        "enable_prefix_caching": True,
    }
    if cpu:
        # On a CPU compiling takes minutes and gains little for small models.
        merged |= {"enforce_eager": True, "max_num_seqs": 16, "kv_cache_memory_bytes": _cpu_cache_bytes()}
    if TOOL_ARGUMENTS.isdisjoint(arguments):
        merged |= tool_arguments(folder)
    merged |= arguments
    # --served-model-name accepts a list, so it comes last.
    line = ["--model", str(folder)]
    for name, value in merged.items():
        line += _argument(name, value)
    return [*line, "--served-model-name", *entry.names]


def parse(line: list[str]) -> Any:
    """Parse the arguments with vLLM's parser. Imports vLLM: takes seconds.

    Raises SettingsError with vLLM's message if one is invalid.
    """
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    def fail(message: str) -> NoReturn:
        raise SettingsError(f"ENGINE_ARGS or engine_args of models.yaml: {message}.")

    parser = make_arg_parser(FlexibleArgumentParser())
    parser.error = fail  # argparse would exit
    arguments = parser.parse_args(line)
    try:
        validate_parsed_serve_args(arguments)
    except (TypeError, ValueError) as error:
        raise SettingsError(f"ENGINE_ARGS or engine_args of models.yaml: {error}") from error
    return arguments


def _cpu_cache_bytes() -> int:
    low, high = CPU_CACHE_GIB
    return int(min(max(memory_bytes() * CPU_CACHE_SHARE, low * GIB), high * GIB))


def _argument(name: str, value: Any) -> list[str]:
    flag = "--" + name.replace("_", "-")
    if value is None:
        return []
    if isinstance(value, bool):
        return [flag if value else "--no-" + name.replace("_", "-")]
    if isinstance(value, list):
        return [flag, *(str(one) for one in value)]
    # With `=`, because a negative number would be parsed as an option.
    return [f"{flag}={json.dumps(value) if isinstance(value, dict) else value}"]
