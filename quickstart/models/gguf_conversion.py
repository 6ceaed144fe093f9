"""A GGUF file turned into a clean Hugging Face folder: safetensors, tokenizer, chat template, generation defaults.

The packaged copy of SmolLM2 is a GGUF with 4-bit weights; every engine of the cluster wants the ordinary folder. The
same file gives the same bytes every time (with the same version of transformers), so the digest of the result is
stable. Only the file is read; nothing that it holds is executed.
"""

import contextlib
import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Report = Callable[[float, str], None]

# What the GGUF calls the way its text is split before byte-pair encoding, when it splits each digit off first.
DIGITS_SPLIT = frozenset({"smollm"})
# What transformers writes about how and from where it read the source; it does not describe the model.
TRACES = frozenset(
    {"_name_or_path", "_model_name_or_path", "name_or_path", "gguf_file", "is_local", "local_files_only", "backend"}
)


def convert(gguf: Path, folder: Path, report: Report) -> None:
    """Write the model in `gguf` into `folder` (made if needed) with weights in bfloat16.

    `report` gets (done, what is being done), done from 0 to 1. Raises ValueError when the file holds no chat template
    or no end token, OSError when it cannot be read or the folder cannot be written.
    """
    report(0.0, f"reading {gguf.name}")
    if not gguf.is_file():
        raise FileNotFoundError(f"{gguf} is not a file")
    import torch
    from transformers import AutoModelForCausalLM

    # Without a hub: the folder is local, and a mirror's name in the environment must not be asked for extras.
    where: dict[str, Any] = {"gguf_file": gguf.name, "local_files_only": True}
    with _hidden_progress():
        tokenizer = _tokenizer(gguf, where)
        report(0.3, "unpacking the weights")
        packed = AutoModelForCausalLM.from_pretrained(str(gguf.parent), dtype=torch.float32, **where)
        report(0.7, "writing the folder")
        folder.mkdir(parents=True, exist_ok=True)
        _clean_model(packed, tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _tidy(folder)
    report(1.0, "done")


def _tokenizer(gguf: Path, where: dict[str, Any]) -> Any:
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(str(gguf.parent), **where)
    if not tokenizer.chat_template:
        raise ValueError(
            f"{gguf.name} holds no chat template, so it cannot answer chats. Use an instruction-tuned file."
        )
    if tokenizer.eos_token_id is None:
        raise ValueError(f"{gguf.name} names no end token, so its answers would never end.")
    if _field(gguf, "tokenizer.ggml.pre") in DIGITS_SPLIT:
        # transformers reads the vocabulary but not this rule, and without it "  12" gets other tokens than in training.
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    return tokenizer


def _clean_model(packed: Any, tokenizer: Any) -> Any:
    """Copy the weights into a model that never was quantized: quantized ones refuse to be saved.

    bfloat16, because on a CPU that knows it (AVX512-BF16, AMX) it generates two to four times as fast as float32, the
    file is half as big, and the source has 4 bits a weight, so nothing that matters is lost.
    """
    import torch
    import transformers

    library: Any = transformers  # parts of it are untyped
    dropped = TRACES | {"quantization_config"}
    settings = {key: value for key, value in packed.config.to_dict().items() if key not in dropped}
    config = type(packed.config).from_dict(settings)
    tokenizer.model_max_length = int(config.max_position_embeddings)
    clean = library.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    clean.load_state_dict({name: tensor.to(torch.bfloat16) for name, tensor in packed.state_dict().items()})
    clean.tie_weights()
    clean.generation_config = library.GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    return clean


def _field(gguf: Path, name: str) -> str | None:
    from gguf import GGUFReader

    field = GGUFReader(gguf).get_field(name)
    return None if field is None else str(field.contents())


def _tidy(folder: Path) -> None:
    """Leave in the JSON files only what describes the model, in a fixed order.

    The tokenizer's class is written by the name that older versions of transformers know too.
    """
    for name in ("tokenizer_config.json", "config.json"):
        path = folder / name
        content = json.loads(path.read_text(encoding="utf-8"))
        kept = {key: content[key] for key in sorted(content) if key not in TRACES}
        if "tokenizer_class" in kept:
            kept["tokenizer_class"] = "PreTrainedTokenizerFast"
        path.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    for path in folder.iterdir():
        path.chmod(0o644)  # safetensors writes 0600, and a model is read by other users than the one that made it


@contextlib.contextmanager
def _hidden_progress() -> Iterator[None]:
    """Keep the library's own progress bars off the terminal: the caller shows its own."""
    import transformers.modeling_gguf_pytorch_utils as reader
    import transformers.utils.logging as library_logging

    reader_module: Any = reader
    logging: Any = library_logging
    shown = logging.is_progress_bar_enabled()
    bar = reader_module.tqdm
    logging.disable_progress_bar()
    # This one bar does not heed the library's own switch.
    reader_module.tqdm = functools.partial(bar, disable=True)
    try:
        yield
    finally:
        reader_module.tqdm = bar
        if shown:
            logging.enable_progress_bar()
