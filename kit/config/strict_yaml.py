"""YAML as people write it by hand: safe, and strict about a key that stands twice."""

from collections.abc import Hashable
from typing import Any

import yaml


def load_yaml(text: str) -> Any:
    """The document in `text`. Raises yaml.YAMLError for what is no YAML, and at the second of two equal keys."""
    return yaml.load(text, _Loader)  # noqa: S506  # it is a SafeLoader


class _Loader(yaml.SafeLoader):
    """Plain YAML would silently drop the first of two entries of one name."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Construct one mapping. Raises ConstructorError at the second of two equal keys."""
        seen: set[object] = set()
        for key, _ in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) and not key.tag.endswith(":merge") else key
            if name in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key {name!r} stands twice", key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)
