"""Task, library and tags as the Hub derives them."""

from typing import Any

import pytest

from registry.models.model_metadata import derive

LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}


@pytest.mark.parametrize(
    ("data", "config", "paths", "expected"),
    [
        # The card decides.
        ({"pipeline_tag": "text-ranking", "library_name": "timm"}, LLAMA, [], ("text-ranking", "timm")),
        # https://huggingface.co/docs/hub/models-tasks: without it, the task follows from the tags and from config.json.
        ({}, LLAMA, ["config.json"], ("text-generation", "transformers")),
        ({}, {"architectures": ["GPT2LMHeadModel"]}, [], ("text-generation", "transformers")),
        ({}, {"architectures": ["BertForMaskedLM"]}, [], ("fill-mask", "transformers")),
        ({}, {"architectures": ["XLMRobertaForSequenceClassification"]}, [], ("text-classification", "transformers")),
        ({}, {"architectures": ["BertModel"]}, [], ("feature-extraction", "transformers")),
        ({}, {"architectures": ["BertModel"]}, ["modules.json"], ("sentence-similarity", "sentence-transformers")),
        ({}, {"architectures": ["T5ForConditionalGeneration"]}, [], ("text2text-generation", "transformers")),
        (
            {},
            {"architectures": ["LlavaNextForConditionalGeneration"], "has_vision": True},
            [],
            ("image-text-to-text", "transformers"),
        ),
        (
            {},
            {"architectures": ["WhisperForConditionalGeneration"], "model_type": "whisper"},
            [],
            ("automatic-speech-recognition", "transformers"),
        ),
        (
            {"tags": ["audio", "automatic-speech-recognition"], "library_name": "ctranslate2"},
            {},
            ["model.bin"],
            ("automatic-speech-recognition", "ctranslate2"),
        ),
        ({}, {"model_type": "llama"}, [], (None, "transformers")),
        ({}, {}, ["README.md"], (None, None)),
        ({"pipeline_tag": 7, "library_name": {"a": 1}, "tags": "x", "base_model": [None]}, {}, [], (None, None)),
    ],
)
def test_task_and_library(
    data: dict[str, Any], config: dict[str, Any], paths: list[str], expected: tuple[str | None, str | None]
) -> None:
    found = derive({"data": data}, config, paths)
    assert (found.pipeline_tag, found.library_name) == expected


def test_tags_are_the_hubs() -> None:
    """Library, formats, architecture and task, the card's own, language, papers, data, base models, licence."""
    card = {
        "tags": ["smol", "text-generation"],
        "language": ["en", "de"],
        "datasets": ["org/data"],
        "base_model": "org/base",
        "base_model_relation": "finetune",
        "license": "apache-2.0",
    }
    paths = ["model.safetensors", "onnx/model.onnx", "q4.gguf", "pytorch_model-00001-of-00002.bin", "config.json"]
    found = derive({"data": card, "papers": ["2502.02737"]}, LLAMA, paths)
    assert list(found.tags) == [
        *("transformers", "safetensors", "gguf", "onnx", "pytorch", "llama", "text-generation", "smol", "en", "de"),
        *("arxiv:2502.02737", "dataset:org/data", "base_model:org/base", "base_model:finetune:org/base"),
        "license:apache-2.0",
    ]
    assert found.config == LLAMA
