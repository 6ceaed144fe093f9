"""Selection of the files to mirror. Pure: from paths to paths.

A repository often has the same weights for several frameworks. Our engines load safetensors if there are any, so
the others are skipped. Without safetensors everything is mirrored.
"""

from collections.abc import Iterable
from pathlib import PurePosixPath

from kit.config.hub_names import chosen, matches

# Weights that safetensors in the same folder replace.
_SAME_FOLDER = ("*.bin", "*.bin.index.json", "*.pth", "*.pt", "*.ckpt", "*.pkl", "*.pickle")
# Weights for other frameworks, in any folder.
_OTHER_FRAMEWORKS = ("*.h5", "*.msgpack", "*.ot", "*.onnx", "*.onnx_data", "*.tflite", "*.mlmodel", "*.gguf", "*.ggml")
# Folders of such weights.
_OTHER_FOLDERS = frozenset({"original", "onnx", "openvino", "coreml", "flax", "tensorflow", "tf"})
# Small files that every framework needs, in any folder.
_ALWAYS = (
    *("config.json", "generation_config.json", "*tokenizer*", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.*", "vocabulary.*", "merges.txt", "*.model", "*.tiktoken", "*.jinja", "chat_template*"),
    *("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json"),
)


def select_files(
    paths: Iterable[str], allow_patterns: Iterable[str] | None = None, ignore_patterns: Iterable[str] | None = None
) -> list[str]:
    """Return the paths to mirror, in their order. Patterns replace the preference for safetensors."""
    everything = list(paths)
    if allow_patterns is not None or ignore_patterns is not None:
        return chosen(everything, allow_patterns, ignore_patterns)
    with_safetensors = {str(PurePosixPath(path).parent) for path in everything if path.endswith(".safetensors")}
    if not with_safetensors:
        return everything
    ctranslate2 = {str(PurePosixPath(path).parent) for path in everything if _is_ctranslate2_vocabulary(path)}
    return [path for path in everything if _is_selected(PurePosixPath(path), with_safetensors, ctranslate2)]


def _is_selected(path: PurePosixPath, with_safetensors: set[str], ctranslate2: set[str]) -> bool:
    if matches(path.name, _ALWAYS):
        return True
    folder = str(path.parent)
    if path.name == "model.bin" and folder in ctranslate2:
        return True
    if matches(path.name, _OTHER_FRAMEWORKS) or not _OTHER_FOLDERS.isdisjoint(path.parts[:-1]):
        return False
    return not (folder in with_safetensors and matches(path.name, _SAME_FOLDER))


def _is_ctranslate2_vocabulary(path: str) -> bool:
    """CTranslate2 has its weights in `model.bin`, with the vocabulary in the same folder."""
    return matches(PurePosixPath(path).name, ("vocabulary.*", "*_vocabulary.*"))
