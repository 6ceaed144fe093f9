"""Selection of the files to mirror."""

import pytest

from registry.hub.file_selection import select_files

LLAMA = [
    *("config.json", "generation_config.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json"),
    *("tokenizer.json", "tokenizer_config.json", "README.md", "LICENSE.txt", "chat_template.jinja"),
]
COMMON = ["config.json", "tokenizer.json", "vocab.txt", "merges.txt", "tokenizer.model", "preprocessor_config.json"]


@pytest.mark.parametrize(
    ("selected", "skipped"),
    [
        pytest.param(LLAMA, ["original/consolidated.00.pth", "original/params.json"], id="llama"),
        pytest.param(
            [*COMMON, "model.safetensors"],
            ["pytorch_model.bin", "pytorch_model.bin.index.json", "tf_model.h5", "flax_model.msgpack", "rust_model.ot"],
            id="frameworks",
        ),
        pytest.param(
            [*COMMON, "model.safetensors", "1_Pooling/config.json", "modules.json", "onnx/tokenizer.json"],
            ["onnx/model.onnx", "onnx/model_O3.onnx", "openvino/openvino_model.xml", "model.onnx_data", "x/q.gguf"],
            id="sentence-transformers",
        ),
        pytest.param(
            ["model.safetensors", "2_Dense/pytorch_model.bin"], ["pytorch_model.bin"], id="bin-in-its-own-folder"
        ),
        pytest.param(["config.json", "model.bin", "tokenizer.json", "vocabulary.txt"], [], id="ctranslate2"),
        pytest.param(
            ["model.bin", "vocabulary.json", "model.safetensors"], ["pytorch_model.bin"], id="ctranslate2-and-both"
        ),
        pytest.param(["pytorch_model.bin", "tf_model.h5", "onnx/model.onnx"], [], id="no-safetensors"),
        pytest.param(["q4.gguf", "config.json"], [], id="gguf-only"),
    ],
)
def test_safetensors_are_preferred(selected: list[str], skipped: list[str]) -> None:
    """With safetensors, the same weights for other frameworks are skipped; without, everything is selected."""
    assert select_files([*skipped, *selected]) == selected


def test_patterns_replace_the_preference() -> None:
    """Weights that would be skipped can be selected."""
    files = ["config.json", "model.safetensors", "pytorch_model.bin"]
    assert select_files(files, ["*.bin"]) == ["pytorch_model.bin"]
    assert select_files(files, None, ["*.safetensors"]) == ["config.json", "pytorch_model.bin"]
