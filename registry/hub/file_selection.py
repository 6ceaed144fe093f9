"""Which files of a repository are mirrored. Pure: from paths to paths.

A repository often holds the same weights several times, for several frameworks. What our engines load is safetensors
where there are any; the rest would only fill the disk. Without safetensors everything is taken.
"""

from collections.abc import Iterable
from pathlib import PurePosixPath

from kit.config.hub_names import chosen, matches

# Weights of which safetensors in the same folder are the same again.
_SAME_FOLDER = ("*.bin", "*.bin.index.json", "*.pth", "*.pt", "*.ckpt", "*.pkl", "*.pickle")
# Weights for other frameworks, wherever they lie.
_OTHER_FRAMEWORKS = ("*.h5", "*.msgpack", "*.ot", "*.onnx", "*.onnx_data", "*.tflite", "*.mlmodel", "*.gguf", "*.ggml")
# Whole folders of them.
_OTHER_FOLDERS = frozenset({"original", "onnx", "openvino", "coreml", "flax", "tensorflow", "tf"})
# Small, and needed by every framework: taken from wherever they lie.
_ALWAYS = (
    *("config.json", "generation_config.json", "*tokenizer*", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.*", "vocabulary.*", "merges.txt", "*.model", "*.tiktoken", "*.jinja", "chat_template*"),
    *("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json"),
)


def choose_files(
    paths: Iterable[str], allow_patterns: Iterable[str] | None = None, ignore_patterns: Iterable[str] | None = None
) -> list[str]:
    """The paths to mirror, in the order given. Any pattern given takes the place of the preference for safetensors."""
    everything = list(paths)
    if allow_patterns is not None or ignore_patterns is not None:
        return chosen(everything, allow_patterns, ignore_patterns)
    with_safetensors = {str(PurePosixPath(path).parent) for path in everything if path.endswith(".safetensors")}
    if not with_safetensors:
        return everything
    ctranslate2 = {str(PurePosixPath(path).parent) for path in everything if _is_ctranslate2_vocabulary(path)}
    return [path for path in everything if _is_wanted(PurePosixPath(path), with_safetensors, ctranslate2)]


def _is_wanted(path: PurePosixPath, with_safetensors: set[str], ctranslate2: set[str]) -> bool:
    if matches(path.name, _ALWAYS):
        return True
    folder = str(path.parent)
    if path.name == "model.bin" and folder in ctranslate2:
        return True
    if matches(path.name, _OTHER_FRAMEWORKS) or not _OTHER_FOLDERS.isdisjoint(path.parts[:-1]):
        return False
    return not (folder in with_safetensors and matches(path.name, _SAME_FOLDER))


def _is_ctranslate2_vocabulary(path: str) -> bool:
    """CTranslate2 keeps its weights in `model.bin`, the vocabulary beside it."""
    return matches(PurePosixPath(path).name, ("vocabulary.*", "*_vocabulary.*"))
