"""Loading of a model and its tokenizer from a folder with transformers. No download, no remote code."""

import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from kit.config.catalogue import Entry
from kit.service.service import Report
from services.llm.memory import memory_bytes
from services.llm.validation.options import Sampling

log = structlog.get_logger(__name__)

# Supported engine arguments; the others are for vLLM.
TAKEN_ARGUMENTS = frozenset(
    {"dtype", "max_model_len", "attn_implementation", "kv_cache_tokens", "override_generation_config"}
)
# Maximum KV cache: share of the memory, and number of full contexts.
CACHE_SHARE = 0.15
CACHE_CONTEXTS = 4
UNKNOWN_CONTEXT = 4096


@dataclass(frozen=True)
class Loaded:
    """A loaded model. `processor` is the tokenizer or, with vision, contains it."""

    model: Any
    processor: Any
    context: int
    ends: tuple[int, ...]
    defaults: Sampling
    device: str
    vision: bool

    @property
    def tokenizer(self) -> Any:
        """The tokenizer itself."""
        return getattr(self.processor, "tokenizer", self.processor)


def load(
    folder: Path, entry: Entry, arguments: dict[str, Any], device: str, cpu_threads: int, report: Report
) -> Loaded:
    """Load the model in `folder`. Blocks for seconds to minutes. `cpu_threads` 0 means all cores but one.

    Raises OSError or ValueError if transformers does not support the model.
    """
    report(0.0, "importing transformers")
    # Set before torch is imported: its threads synchronize about 200 times per token, and spinning threads take the
    # cores from those that they wait for.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import torch
    import transformers

    _quiet_logs()
    # One core stays free: with a thread on every core, another busy process delays each synchronization by a time
    # slice. On 2 cores with one busy process: 2 threads 5 tokens/s, 1 thread 14; without it, 19 and 16.
    torch.set_num_threads(cpu_threads or max(1, len(os.sched_getaffinity(0)) - 1))
    ignored = sorted(set(arguments) - TAKEN_ARGUMENTS)
    if ignored:
        log.info("ignoring engine arguments of vLLM", arguments=ignored)
    library: Any = transformers
    where: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    report(0.2, "reading the tokenizer")
    vision = entry.kind == "multimodal"
    reader = library.AutoProcessor if vision else library.AutoTokenizer
    processor = reader.from_pretrained(str(folder), **where)
    config = library.AutoConfig.from_pretrained(str(folder), **where)
    report(0.3, "reading the weights")
    target = _device(device, torch)
    model_class = library.AutoModelForImageTextToText if vision else library.AutoModelForCausalLM
    model = model_class.from_pretrained(
        str(folder),
        dtype=arguments.get("dtype", "auto"),
        attn_implementation=arguments.get("attn_implementation"),
        **where,
    )
    model = model.to(target).eval()
    report(0.8, "preparing")
    return Loaded(
        model=model,
        processor=processor,
        context=_context(config, entry, arguments),
        ends=_ends(model, getattr(processor, "tokenizer", processor)),
        defaults=sampling_defaults(folder, arguments.get("override_generation_config") or {}),
        device=str(target),
        vision=vision,
    )


def cache_tokens(loaded: Loaded, arguments: dict[str, Any]) -> int:
    """Return the tokens of the KV cache for all responses: some whole contexts, limited by memory."""
    if "kv_cache_tokens" in arguments:
        return int(arguments["kv_cache_tokens"])
    config = loaded.model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    bytes_per_token = 2 * config.num_hidden_layers * heads * size * loaded.model.dtype.itemsize
    budget = _memory_bytes(loaded.device) * CACHE_SHARE
    return int(max(loaded.context, min(CACHE_CONTEXTS * loaded.context, budget // bytes_per_token)))


def _memory_bytes(device: str) -> float:
    if device.startswith("cuda"):
        import torch

        return float(torch.cuda.get_device_properties(device).total_memory)
    return float(memory_bytes())


def _device(setting: str, torch: Any) -> Any:
    if setting == "auto":
        setting = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(setting)


def _context(config: Any, entry: Entry, arguments: dict[str, Any]) -> int:
    text = config.get_text_config()
    most = getattr(text, "max_position_embeddings", None) or entry.context_length or UNKNOWN_CONTEXT
    asked = arguments.get("max_model_len") or entry.context_length or most
    if int(asked) > int(most):
        log.warning("max_model_len exceeds the model's context", asked=asked, model=most)
    return min(int(asked), int(most))


def _ends(model: Any, tokenizer: Any) -> tuple[int, ...]:
    ends = model.generation_config.eos_token_id
    if ends is None:
        ends = tokenizer.eos_token_id
    if ends is None:
        return ()
    return tuple(ends) if isinstance(ends, list | tuple) else (int(ends),)


def sampling_defaults(folder: Path, override: dict[str, Any]) -> Sampling:
    """Return the model's default sampling options.

    `override` takes precedence, as in vLLM. Read from generation_config.json itself, because transformers adds its own
    defaults, such as top_k 50.
    """
    try:
        given = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        given = {}
    given |= override
    names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
    return Sampling(**{name: given[name] for name in names if given.get(name) is not None})


def _quiet_logs() -> None:
    """Send the library's warnings to our log, without its messages per request."""
    from transformers.utils import logging as library_logging

    untyped: Any = library_logging
    untyped.disable_default_handler()
    untyped.enable_propagation()
    untyped.disable_progress_bar()
    logging.getLogger("transformers.cli.serving").setLevel(logging.ERROR)
    batching = logging.getLogger("ContinuousBatchingLogger")  # gets its own handler at its first import
    import transformers.generation.continuous_batching  # noqa: F401

    batching.handlers = []
    batching.setLevel(logging.WARNING)
    batching.propagate = True
