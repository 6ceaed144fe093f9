"""Task, library and tags as the Hub derives them."""

import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from registry.download.folder_import import import_folder
from registry.models.model_metadata import MetadataReader, derive
from tests.registry.bundles import new_library
from tests.support.hub import small_repo

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


def test_another_thread_may_clear_the_cache_at_any_point(tmp_path: Path) -> None:
    """As it does when the cache is full: before every line of the reader here."""
    library = new_library(tmp_path / "store")
    manifest = import_folder(library, small_repo(tmp_path / "repo"), name="m", repo="o/m", revision="main")
    reader = MetadataReader(library.store)
    expected = reader.read(manifest)

    def clear(frame: FrameType, _event: str, _argument: Any) -> Any:
        if frame.f_code.co_name == "_read":
            reader._parsed.clear()
        return clear

    before = sys.gettrace()
    sys.settrace(clear)
    try:
        found = reader.read(manifest)
    finally:
        sys.settrace(before)
    assert found == expected
    assert found.config["model_type"] == "bert"
