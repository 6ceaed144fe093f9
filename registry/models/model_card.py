"""The front matter of a model card, and the licence and base model in it. Pure.

The card is README.md; its front matter is YAML between two lines of `---`
(https://huggingface.co/docs/hub/model-cards#model-card-metadata).
"""

import datetime
import math
import re
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict

CARD = "README.md"
# A front matter has a few hundred bytes; a longer one is ignored.
MAX_BYTES = 64 << 10
MAX_FIELD_CHARS = 200
MAX_LIST = 100
# Characters and values of the front matter as JSON.
MAX_JSON_SIZE = 4 * MAX_BYTES
_FRONT_MATTER = re.compile(r"\A\ufeff?---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(\r?\n|\Z)", re.DOTALL)


class Card(BaseModel):
    """The fields kept of a card."""

    model_config = ConfigDict(frozen=True)

    license: str | None = None
    license_link: str | None = None
    base_model: tuple[str, ...] = ()


class _Loader(yaml.SafeLoader):
    """Without merge keys, by which a few bytes become any number of entries."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Leave `<<` in place; as a key it is an error."""


def front_matter(content: bytes) -> dict[str, Any]:
    """Parse the front matter in the first bytes of README.md to plain JSON; empty if it is missing or malformed."""
    found = _FRONT_MATTER.match(content[:MAX_BYTES].decode(errors="replace"))
    try:
        fields = _plain(yaml.load(found[1], _Loader), [MAX_JSON_SIZE]) if found else None  # noqa: S506  # a SafeLoader
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError):
        fields = None  # PyYAML raises any of these for malformed scalars
    return fields if isinstance(fields, dict) else {}


def _plain(value: object, left: list[int]) -> Any:
    """Convert to what JSON can hold. Aliases (`*a`) can make it much longer than the text: raises ValueError then."""
    left[0] -= 1 + len(value) if isinstance(value, str) else 1
    if left[0] < 0:
        raise ValueError("too long")
    if isinstance(value, dict):
        return {str(_plain(key, left)): _plain(each, left) for key, each in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(each, left) for each in value]
    if isinstance(value, str):
        return value.encode(errors="replace").decode()
    if isinstance(value, datetime.date):
        return value.isoformat()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or (isinstance(value, int) and abs(value) < 1 << 63) else None


def parse_card(content: bytes) -> Card:
    """Parse the first bytes of README.md; missing or malformed fields are left out."""
    fields = front_matter(content)
    licence = next(iter(short_strings(fields.get("license"))), None)
    if licence in (None, "other"):  # the name is in a field of its own
        licence = next(iter(short_strings(fields.get("license_name"))), None) or licence
    return Card(
        license=licence,
        license_link=next(iter(short_strings(fields.get("license_link"))), None),
        base_model=tuple(short_strings(fields.get("base_model"))),
    )


def short_strings(value: object) -> list[str]:
    """Return the short strings in a field that is one string or a list of them."""
    values = value[:MAX_LIST] if isinstance(value, list) else [value]
    found = [each.strip() for each in values if isinstance(each, str)]
    return [each for each in found if 0 < len(each) <= MAX_FIELD_CHARS]
