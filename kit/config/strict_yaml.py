"""Safe YAML that rejects duplicate keys."""

from collections.abc import Hashable
from typing import Any

import yaml


def load_yaml(text: str) -> Any:
    """Parse `text`. Raises yaml.YAMLError for invalid YAML and for duplicate keys."""
    return yaml.load(text, _Loader)  # noqa: S506  # it is a SafeLoader


class _Loader(yaml.SafeLoader):
    """PyYAML itself drops the first of two equal keys silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Construct one mapping. Raises ConstructorError for a duplicate key."""
        seen: set[object] = set()
        for key, _ in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) and not key.tag.endswith(":merge") else key
            if name in seen:
                raise yaml.constructor.ConstructorError(None, None, f"duplicate key {name!r}", key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)
