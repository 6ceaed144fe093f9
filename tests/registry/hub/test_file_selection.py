"""Selection of the files to mirror."""

import pytest

from registry.hub.file_selection import files_left_out, select_files

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
        pytest.param(
            ["model.safetensors", "sparse_linear.pt", "colbert_linear.pt", "head.bin", "speakers.pkl"],
            ["pytorch_model.bin"],
            id="other-weights-beside",
        ),
        pytest.param(
            ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"],
            [
                *("pytorch_model-00001-of-00003.bin", "pytorch_model.bin.index.json", "consolidated.00.pth"),
                *("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state_0.pth"),
            ],
            id="shards-and-state-of-a-training",
        ),
        pytest.param(
            ["unet/diffusion_pytorch_model.fp16.safetensors", "unet/diffusion_pytorch_model.bin", "sd.safetensors"],
            ["unet/diffusion_pytorch_model.fp16.bin", "sd.ckpt"],
            id="same-stem",
        ),
        pytest.param(["open_clip_model.safetensors"], ["open_clip_pytorch_model.bin"], id="open-clip"),
        pytest.param(["adapter_model.safetensors", "pytorch_model.bin"], ["adapter_model.bin"], id="adapter"),
    ],
)
def test_safetensors_are_preferred(selected: list[str], skipped: list[str]) -> None:
    """R5: with safetensors, the same weights in other formats are left out; without, everything is selected."""
    assert select_files([*skipped, *selected]) == selected
    assert set(files_left_out([*skipped, *selected])) == set(skipped)


def test_patterns_replace_the_preference() -> None:
    """Weights that would be skipped can be selected."""
    files = ["config.json", "model.safetensors", "pytorch_model.bin"]
    assert select_files(files, ["*.bin"]) == ["pytorch_model.bin"]
    assert select_files(files, None, ["*.safetensors"]) == ["config.json", "pytorch_model.bin"]


def test_reasons_name_what_replaces_a_file() -> None:
    """R5: one reason for each file."""
    files = ["model.safetensors", "pytorch_model.bin", "tf_model.h5", "onnx/model.onnx", "optimizer.pt"]
    other = "weights for another framework; safetensors are mirrored"
    assert files_left_out(files) == {
        "pytorch_model.bin": "the same weights as model.safetensors",
        "tf_model.h5": other,
        "onnx/model.onnx": other,
        "optimizer.pt": "state of a training",
    }
    assert files_left_out(files[:3], ["*.bin", "*.h5"], ["tf_*"]) == {
        "model.safetensors": "not in allow_patterns",
        "tf_model.h5": "in ignore_patterns",
    }
