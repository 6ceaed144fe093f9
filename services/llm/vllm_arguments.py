"""vLLM's arguments for one service: what the catalogue and the settings say, over defaults for one GPU or a CPU.

Everything goes through vLLM's own parser, so every argument of `vllm serve` is reachable by its own name, is checked as
there, and a wrong one is named at start.
"""

import json
import os
from pathlib import Path
from typing import Any, NoReturn

from kit.config.catalogue import Entry
from kit.config.settings import SettingsError
from services.llm.memory import memory_bytes
from services.llm.tool_parsers import tool_arguments
from services.llm.vllm_media import CONNECTOR

GIB = 1024**3
# On a CPU: the share of the memory that the cache may take, and its bounds in GiB.
CPU_CACHE_SHARE = 0.15
CPU_CACHE_GIB = (1, 16)
# These are decided by the service; another value would make it unreachable or answer to other names.
OURS = frozenset({"model", "model_tag", "served_model_name", "host", "port", "uds", "api_key", "headless", "grpc"})
TOOL_ARGUMENTS = frozenset({"tool_call_parser", "enable_auto_tool_choice"})


def environment_defaults() -> dict[str, str]:
    """What vLLM reads from the environment, where nobody has set it."""
    return {
        # The engine runs in a process of its own; forking one that has threads is not safe.
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        # Its workers often take the whole of this before they are made to end, and `docker stop` waits for 10 s.
        "VLLM_WORKER_SHUTDOWN_TIMEOUT_SECONDS": "2",
        "VLLM_MEDIA_CONNECTOR": CONNECTOR,
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",  # the folder has everything, and the air gap has nobody to ask
    }


def prepare_environment() -> None:
    """Set the defaults of vLLM's environment. Call before vLLM is imported."""
    for name, value in environment_defaults().items():
        os.environ.setdefault(name, value)


def command_line(folder: Path, entry: Entry, arguments: dict[str, Any], *, cpu: bool) -> list[str]:
    """The arguments of `vllm serve` for the model in `folder`.

    Raises SettingsError for those that the service decides itself.
    """
    taken = sorted(OURS & set(arguments))
    if taken:
        raise SettingsError(f"ENGINE_ARGS may not hold {', '.join(taken)}: the service sets it.")
    if "allowed_media_domains" in arguments:
        raise SettingsError("allowed_media_domains is set by IMAGE_HOSTS, which looks at addresses and redirects too.")
    # What is not here is left to vLLM, whose defaults suit a GPU of one's own: 0.92 of its memory, prompts in chunks,
    # the chat template of the model or else of its kind. -1 is the model's whole context, or as much as memory allows.
    merged: dict[str, Any] = {
        "max_model_len": entry.context_length or -1,
        "enable_prefix_caching": True,
    }
    if cpu:
        # Compiling takes minutes on a CPU and gains little for the models that one would run there.
        merged |= {"enforce_eager": True, "max_num_seqs": 16, "kv_cache_memory_bytes": _cpu_cache_bytes()}
    if TOOL_ARGUMENTS.isdisjoint(arguments):  # whoever chooses one of them means both
        merged |= tool_arguments(folder)
    merged |= arguments
    # Lists are of unknown length to the parser, so they stand last, away from each other and from the model.
    line = ["--model", str(folder)]
    for name, value in merged.items():
        line += _argument(name, value)
    return [*line, "--served-model-name", *entry.names]


def parse(line: list[str]) -> Any:
    """vLLM's own reading of the arguments. Imports vLLM, so it takes seconds.

    Raises SettingsError with vLLM's own words when one is wrong.
    """
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    def fail(message: str) -> NoReturn:
        raise SettingsError(f"ENGINE_ARGS or engine_args of models.yaml: {message}.")

    parser = make_arg_parser(FlexibleArgumentParser())
    parser.error = fail  # argparse would end the process
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
    # `=`, because a negative number would be taken for a flag of its own.
    return [f"{flag}={json.dumps(value) if isinstance(value, dict) else value}"]
