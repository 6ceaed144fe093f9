"""Code that a model loads from other repositories, or from modules that its configuration names. Pure.

In the configuration of a `trust_remote_code` model, `auto_map` names the classes of its own code; a value of the form
`ORG/NAME--module.Class` loads the code from another repository, at its current `main`
(transformers, dynamic_module_utils; sentence_transformers, import_module_class, for `type` in modules.json). Without a
mirror of that repository the model does not load offline. `auto_mapping` of an adapter names a module that is imported
(peft, AutoPeftModel).
"""

import json
from collections.abc import Iterator
from pathlib import PurePosixPath

from kit.config.hub_names import BadName, check_repo

# Besides every name that ends in `config.json`, and `config.4.0.0.json`, which `configuration_files` of transformers
# puts in the place of config.json from that version on.
_CONFIGURATIONS = frozenset({"modules.json", "model_index.json", "modular_model_index.json"})
# Keys under which classes are named, at any depth.
_CLASSES = frozenset({"auto_map", "custom_pipelines", "type", "types"})
# Libraries whose modules an adapter may name.
_LIBRARIES = frozenset({"transformers", "peft", "diffusers", "torch"})
MAX_BYTES = 16 << 20
# The files mirrored of a repository that only provides code.
CODE_PATTERNS = ("*.py", "*.json", "LICENSE*", "*.md")


def may_name_code(path: str) -> bool:
    """Whether a file is a configuration in which code can be named."""
    name = PurePosixPath(path).name
    if name.startswith("config.") and name.endswith(".json"):
        return True
    return name in _CONFIGURATIONS or name.endswith("config.json")


def code_repos(content: bytes, repo: str) -> set[str]:
    """The other repositories from which a configuration loads code.

    Raises BadName for an invalid one, RecursionError for JSON that is nested too deeply.
    """
    named = {value.partition("--")[0] for value in _classes(_parse(content)) if "--" in value}
    for each in named:
        try:
            check_repo(each)
        except BadName as error:
            raise BadName(f"auto_map loads code from {each!r}, which is not a repository name.") from error
    return named - {repo}


def imported_modules(content: bytes) -> set[str]:
    """The modules outside of known libraries that an adapter's configuration imports. Raises RecursionError."""
    document = _parse(content)
    mapping = document.get("auto_mapping") if isinstance(document, dict) else None
    module = mapping.get("parent_library") if isinstance(mapping, dict) else None
    return {module} if isinstance(module, str) and module.partition(".")[0] not in _LIBRARIES else set()


def _parse(content: bytes) -> object:
    try:
        return json.loads(content)
    except ValueError:
        return None  # not a configuration: nothing loads it


def _classes(value: object, key: str = "") -> Iterator[str]:
    """Yield the strings under `_CLASSES`."""
    if isinstance(value, str) and key in _CLASSES:
        yield value
    elif isinstance(value, dict):
        for name, each in value.items():
            yield from _classes(each, key if key in _CLASSES else name)
    elif isinstance(value, list):
        for each in value:
            yield from _classes(each, key)
