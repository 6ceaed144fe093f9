"""Conversion of a GGUF file to a Hugging Face model folder: safetensors, tokenizer, chat template, defaults.

The packaged copy of SmolLM2 is a GGUF with 4-bit weights; the engines need an ordinary folder. The conversion is
deterministic for a given version of transformers, so that the digest is stable. No code from the file is executed.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Report = Callable[[float, str], None]

# GGUF names of pre-tokenizers that split every digit.
SPLIT_DIGITS_PRETOKENIZERS = frozenset({"smollm"})
# Fields in which transformers records how it read the source.
LOCAL_FIELDS = frozenset(
    {"_name_or_path", "_model_name_or_path", "name_or_path", "gguf_file", "is_local", "local_files_only", "backend"}
)


def convert(gguf: Path, folder: Path, report: Report) -> None:
    """Convert the model in `gguf` to `folder`, with weights in bfloat16.

    `report` gets the progress (0 to 1) and the current step. Raises ValueError if the file has no chat template or no
    end token, OSError if it cannot be read or the folder cannot be written.
    """
    report(0.0, f"reading {gguf.name}")
    if not gguf.is_file():
        raise FileNotFoundError(f"{gguf} is not a file")
    import torch
    from transformers import AutoModelForCausalLM

    # HF_ENDPOINT in the environment must not be queried.
    where: dict[str, Any] = {"gguf_file": gguf.name, "local_files_only": True}
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
    from gguf import GGUFReader
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(str(gguf.parent), **where)
    if not tokenizer.chat_template:
        raise ValueError(f"{gguf.name} has no chat template. Use an instruction-tuned model.")
    if tokenizer.eos_token_id is None:
        raise ValueError(f"{gguf.name} has no end token, so its responses would never end.")
    pretokenizer = GGUFReader(gguf).get_field("tokenizer.ggml.pre")
    if pretokenizer is not None and pretokenizer.contents() in SPLIT_DIGITS_PRETOKENIZERS:
        # transformers ignores this rule, and without it "  12" gets other tokens than in training.
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    return tokenizer


def _clean_model(packed: Any, tokenizer: Any) -> Any:
    """Copy the weights into an unquantized model: transformers cannot save quantized ones.

    In bfloat16: on CPUs with AVX512-BF16 or AMX it is two to four times as fast as float32, at half the size, and the
    source has only 4 bits per weight.
    """
    import torch
    import transformers

    library: Any = transformers  # partly untyped
    dropped = LOCAL_FIELDS | {"quantization_config"}
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


def _tidy(folder: Path) -> None:
    """Remove LOCAL_FIELDS from the JSON files and sort them.

    The tokenizer's class gets a name that older versions of transformers support, too.
    """
    for name in ("tokenizer_config.json", "config.json"):
        path = folder / name
        content = json.loads(path.read_text(encoding="utf-8"))
        kept = {key: content[key] for key in sorted(content) if key not in LOCAL_FIELDS}
        if "tokenizer_class" in kept:
            kept["tokenizer_class"] = "PreTrainedTokenizerFast"
        path.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    for path in folder.iterdir():
        path.chmod(0o644)  # safetensors writes 0600; other users read the model
