"""Selection of the files to mirror. Pure: from paths to paths, with the reason for each file that is left out.

A repository often has the same weights for several frameworks. Our engines load safetensors if there are any, so
their duplicates and the weights of other frameworks are left out. Without safetensors everything is mirrored.
"""

import re
from collections.abc import Iterable
from pathlib import PurePosixPath

from kit.config.hub_names import matches

# Weights for torch, or their index. The stem is without the number of a shard.
_TORCH_WEIGHTS = re.compile(
    r"(?P<stem>.+?)(-\d{5}-of-\d{5})?\.(bin|pth|pt|ckpt|pkl|pickle)(\.index(\.\w+)?\.json)?", re.ASCII
)
_SAFETENSORS = re.compile(r"(?P<stem>.+?)(-\d{5}-of-\d{5})?\.safetensors", re.ASCII)
# Meta's original format of the weights in model.safetensors.
_CONSOLIDATED = "consolidated.*.pth"
# What a training writes beside the weights, and nothing loads for inference.
_TRAINING = (
    *("training_args.bin", "optimizer*.bin", "optimizer*.pt", "scheduler*.bin", "scheduler*.pt", "scaler.pt"),
    *("rng_state*.pth", "random_states_*.pkl"),
)
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
    left_out = files_left_out(everything, allow_patterns, ignore_patterns)
    return [path for path in everything if path not in left_out]


def files_left_out(
    paths: Iterable[str], allow_patterns: Iterable[str] | None = None, ignore_patterns: Iterable[str] | None = None
) -> dict[str, str]:
    """Return the other paths, each with the reason."""
    everything = list(paths)
    if allow_patterns is not None or ignore_patterns is not None:
        allow, ignore = None if allow_patterns is None else list(allow_patterns), list(ignore_patterns or ())
        reasons = {path: _reason_of_patterns(path, allow, ignore) for path in everything}
    else:
        safetensors: dict[str, dict[str, str]] = {}
        for path in everything:
            if match := _SAFETENSORS.fullmatch(PurePosixPath(path).name):
                safetensors.setdefault(str(PurePosixPath(path).parent), {})[_weights(match["stem"])] = path
        ctranslate2 = {str(PurePosixPath(path).parent) for path in everything if _is_ctranslate2_vocabulary(path)}
        reasons = {path: _reason(PurePosixPath(path), safetensors, ctranslate2) for path in everything}
    return {path: reason for path, reason in reasons.items() if reason is not None}


def _reason_of_patterns(path: str, allow: list[str] | None, ignore: list[str]) -> str | None:
    if allow is not None and not matches(path, allow):
        return "not in allow_patterns"
    return "in ignore_patterns" if matches(path, ignore) else None


def _reason(path: PurePosixPath, safetensors: dict[str, dict[str, str]], ctranslate2: set[str]) -> str | None:
    folder = str(path.parent)
    if not safetensors or matches(path.name, _ALWAYS) or (path.name == "model.bin" and folder in ctranslate2):
        return None
    if matches(path.name, _OTHER_FRAMEWORKS) or not _OTHER_FOLDERS.isdisjoint(path.parts[:-1]):
        return "weights for another framework; safetensors are mirrored"
    beside = safetensors.get(folder, {})
    if beside and matches(path.name, _TRAINING):
        return "state of a training"
    match = _TORCH_WEIGHTS.fullmatch(path.name)
    same = beside.get("model" if matches(path.name, [_CONSOLIDATED]) else _weights(match["stem"])) if match else None
    return None if same is None else f"the same weights as {same}"


def _weights(stem: str) -> str:
    """A name for what `pytorch_model` and `model` both contain."""
    return stem.replace("pytorch_model", "model")


def _is_ctranslate2_vocabulary(path: str) -> bool:
    """CTranslate2 has its weights in `model.bin`, with the vocabulary in the same folder."""
    return matches(PurePosixPath(path).name, ("vocabulary.*", "*_vocabulary.*"))
