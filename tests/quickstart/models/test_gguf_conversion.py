"""The folder converted from the packaged GGUF."""

import json
from pathlib import Path
from typing import Any

import pytest

from quickstart.models.gguf_conversion import convert
from tests.support import models


@pytest.fixture(scope="module")
def folder() -> Path:
    return models.folder("smollm2")


def test_missing_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing\.gguf"):
        convert(tmp_path / "nothing.gguf", tmp_path / "out", lambda _done, _detail: None)


@pytest.mark.engines
def test_configuration_has_no_traces_of_the_conversion(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    assert config["dtype"] == "bfloat16"
    assert "quantization_config" not in config
    assert not {"_name_or_path", "name_or_path", "gguf_file", "is_local"} & (set(config) | set(tokenizer))
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == 2


@pytest.mark.engines
@pytest.mark.parametrize("text", ["Hello world", "  12 345", "it's\n\n  ünïcode 日本 1+1"])
def test_tokenizer_round_trips_and_splits_digits(folder: Path, text: str) -> None:
    from transformers import AutoTokenizer

    library: Any = AutoTokenizer
    tokenizer = library.from_pretrained(folder)
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids) == text
    assert all(len(token) == 1 for token in tokenizer.convert_ids_to_tokens(ids) if any(c.isdigit() for c in token))


@pytest.mark.engines
def test_chat_template_is_the_original(folder: Path) -> None:
    from transformers import AutoTokenizer

    library: Any = AutoTokenizer
    tokenizer = library.from_pretrained(folder)
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert chat == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
