"""What the Hub's API says of a model beyond its files: task, library, tags; derived from the card and config.json.

Rules: https://huggingface.co/docs/hub/model-cards and https://huggingface.co/docs/hub/models-libraries. Read when they
are requested, since manifests do not have them; parsed files are cached by digest.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from pydantic_core import from_json

from registry.models.manifest import FileEntry, Manifest
from registry.models.model_card import CARD, MAX_BYTES, front_matter, short_strings
from registry.store.interface import Store, StoreError

Json = dict[str, Any]

CONFIG = "config.json"
MAX_CONFIG_BYTES = 1 << 20
MAX_CACHED_FILES = 2000
MAX_TAGS = 200
# Formats of weights, which the Hub lists as libraries.
_FORMATS = {
    "*.safetensors": "safetensors",
    "*.gguf": "gguf",
    "*.onnx": "onnx",
    "pytorch_model*.bin": "pytorch",
    "tf_model*.h5": "tf",
    "flax_model*.msgpack": "jax",
    "openvino_*.xml": "openvino",
}
# Ends of architectures in config.json, from the auto classes of transformers.
_TASKS = {
    "ForCausalLM": "text-generation",
    "LMHeadModel": "text-generation",
    "ForMaskedLM": "fill-mask",
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForImageClassification": "image-classification",
    "ForObjectDetection": "object-detection",
    "ForAudioClassification": "audio-classification",
    "ForCTC": "automatic-speech-recognition",
    "ForSpeechSeq2Seq": "automatic-speech-recognition",
    "ForConditionalGeneration": "text2text-generation",
    "Model": "feature-extraction",
}
_ARXIV = re.compile(rb"arxiv\.org/(?:abs|pdf)/(\d{4}\.\d{4,5})")


@dataclass(frozen=True)
class Metadata:
    """Metadata of one commit, in the Hub's terms."""

    card_data: Json
    """The front matter of README.md."""
    config: Json
    """`architectures` and `model_type` of config.json."""
    library_name: str | None
    pipeline_tag: str | None
    tags: tuple[str, ...]


class MetadataReader:
    """Reads metadata from a store. Thread-safe."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._parsed: dict[tuple[str, str], Json] = {}

    def read(self, manifest: Manifest) -> Metadata:
        """The metadata of a commit; without the card or config.json if it is damaged or not stored yet."""
        card = self._read(manifest.file(CARD), MAX_BYTES, _parse_card)
        config = self._read(manifest.file(CONFIG), MAX_CONFIG_BYTES, _parse_config)
        return derive(card, config, [file.path for file in manifest.files])

    def _read(self, file: FileEntry | None, limit: int, parse: Callable[[bytes], Json]) -> Json:
        if file is None:
            return {}
        key = parse.__name__, file.sha256
        parsed = self._parsed.get(key)
        if parsed is None:
            try:
                content = b"".join(self._store.read_blob(file.sha256, 0, min(file.size, limit))) if file.size else b""
            except StoreError:
                return {}
            if len(self._parsed) >= MAX_CACHED_FILES:
                self._parsed.clear()
            parsed = self._parsed[key] = parse(content)
        return parsed


def derive(card: Json, config: Json, paths: Iterable[str]) -> Metadata:
    """Derive the metadata from the parsed files and the paths of a model. Pure."""
    paths = list(paths)
    data = card.get("data", {})
    names = {path.rpartition("/")[2] for path in paths}
    formats = [name for pattern, name in _FORMATS.items() if any(fnmatchcase(each, pattern) for each in names)]
    library = _first(data.get("library_name")) or _library(config, paths)
    task = _first(data.get("pipeline_tag")) or _task(config, library, short_strings(data.get("tags")))
    relation = _first(data.get("base_model_relation"))
    bases = short_strings(data.get("base_model"))
    tags = [
        *(library, *formats, config.get("model_type"), task),
        *short_strings(data.get("tags")),
        *short_strings(data.get("language")),
        *(f"arxiv:{paper}" for paper in card.get("papers", ())),
        *(f"dataset:{name}" for name in short_strings(data.get("datasets"))),
        *(f"base_model:{name}" for name in bases),
        *(f"base_model:{relation}:{name}" for name in bases if relation),
        *(f"license:{name}" for name in short_strings(data.get("license"))[:1]),
    ]
    known: Json = {key: config[key] for key in ("architectures", "model_type") if key in config}
    return Metadata(data, known, library, task, tuple(dict.fromkeys(tag for tag in tags if tag))[:MAX_TAGS])


def _library(config: Json, paths: list[str]) -> str | None:
    if "modules.json" in paths:
        return "sentence-transformers"
    return "transformers" if config else None


def _task(config: Json, library: str | None, tags: list[str]) -> str | None:
    if library == "sentence-transformers":
        return "sentence-similarity"
    named = next((tag for tag in tags if tag in _TASKS.values()), None)
    architecture = next(iter(config.get("architectures", ())), "")
    task = named or next((task for end, task in _TASKS.items() if architecture.endswith(end)), None)
    if named is None and task == "text2text-generation":
        if config.get("has_vision"):
            return "image-text-to-text"
        if config.get("model_type") == "whisper":
            return "automatic-speech-recognition"
    return task


def _parse_card(content: bytes) -> Json:
    papers = dict.fromkeys(paper.decode() for paper in _ARXIV.findall(content))
    return {"data": front_matter(content), "papers": list(papers)[:20]}


def _parse_config(content: bytes) -> Json:
    """The fields of config.json that are used; empty for a file of another kind."""
    try:
        document = from_json(content)
    except ValueError:
        return {}
    if not isinstance(document, dict):
        return {}
    fields = {
        "architectures": short_strings(document.get("architectures")),
        "model_type": _first(document.get("model_type")),
        "has_vision": "vision_config" in document,
    }
    return fields if fields["architectures"] or fields["model_type"] else {}


def _first(value: object) -> str | None:
    return next(iter(short_strings(value)), None)
