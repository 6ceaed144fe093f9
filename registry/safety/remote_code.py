"""Code that a model loads from other repositories. Pure.

In the configuration of a `trust_remote_code` model, `auto_map` names the classes of its own code; a value of the form
`ORG/NAME--module.Class` loads the code from another repository, at its current `main`
(transformers, dynamic_module_utils). Without a mirror of that repository the model does not load offline.
"""

import json
from collections.abc import Iterator
from pathlib import PurePosixPath

from kit.config.hub_names import BadName, check_repo

# The files in which transformers looks for `auto_map`.
CONFIGURATIONS = frozenset(
    {
        *("config.json", "tokenizer_config.json", "processor_config.json", "preprocessor_config.json"),
        *("image_processor_config.json", "video_preprocessor_config.json", "feature_extractor_config.json"),
        "generation_config.json",
    }
)
MAX_BYTES = 4 << 20
# The files mirrored of a repository that only provides code.
CODE_PATTERNS = ("*.py", "*.json", "LICENSE*", "*.md")


def may_name_code(path: str) -> bool:
    """Whether a file can contain an `auto_map`."""
    return PurePosixPath(path).name in CONFIGURATIONS


def code_repos(content: bytes, repo: str) -> set[str]:
    """The other repositories from which a configuration loads code. Raises BadName for an invalid one."""
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        return set()  # not a configuration: nothing loads it
    if not isinstance(document, dict):
        return set()
    named = {value.partition("--")[0] for value in _values(document) if "--" in value}
    for each in named:
        try:
            check_repo(each)
        except BadName as error:
            raise BadName(f"auto_map loads code from {each!r}, which is not a repository name.") from error
    return named - {repo}


def _values(document: dict[str, object]) -> Iterator[str]:
    """Yield each class named by `auto_map`, whose values may be lists (a slow and a fast tokenizer)."""
    auto_map = document.get("auto_map")
    if isinstance(auto_map, list):
        auto_map = {"": auto_map}  # an older form, of tokenizers
    for value in auto_map.values() if isinstance(auto_map, dict) else ():
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, str):
                yield each
    custom = document.get("custom_pipelines")
    for pipeline in custom.values() if isinstance(custom, dict) else ():
        if isinstance(pipeline, dict) and isinstance(pipeline.get("impl"), str):
            yield pipeline["impl"]
