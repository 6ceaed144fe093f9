"""Code that a model takes from other repositories. Pure.

In the configuration of a `trust_remote_code` model, `auto_map` names the classes of its own code; a value of the form
`ORG/NAME--module.Class` takes the code from another repository, at whatever its `main` is on the day
(transformers, dynamic_module_utils). A mirror of the one without the other does not load offline.
"""

import json
from collections.abc import Iterator
from pathlib import PurePosixPath

from kit.config.hub_names import BadName, check_repo

# Where transformers looks for `auto_map`.
CONFIGURATIONS = frozenset(
    {
        *("config.json", "tokenizer_config.json", "processor_config.json", "preprocessor_config.json"),
        *("image_processor_config.json", "video_preprocessor_config.json", "feature_extractor_config.json"),
        "generation_config.json",
    }
)
MAX_BYTES = 4 << 20
# What is mirrored of a repository that only gives its code.
CODE_PATTERNS = ("*.py", "*.json", "LICENSE*", "*.md")


def may_name_code(path: str) -> bool:
    """Whether a file can hold an `auto_map`."""
    return PurePosixPath(path).name in CONFIGURATIONS


def code_repos(content: bytes, repo: str) -> set[str]:
    """The repositories other than `repo` from which a configuration takes code. Raises BadName for one that is none."""
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        return set()  # no configuration: nothing will load it
    if not isinstance(document, dict):
        return set()
    named = {value.partition("--")[0] for value in _values(document) if "--" in value}
    for each in named:
        try:
            check_repo(each)
        except BadName as error:
            raise BadName(f"auto_map takes code from {each!r}, which is no repository.") from error
    return named - {repo}


def _values(document: dict[str, object]) -> Iterator[str]:
    """Every class that an `auto_map` names: they stand at the top, in a list where there are a slow and a fast one."""
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
