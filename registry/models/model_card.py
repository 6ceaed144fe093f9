"""Licence and base model from a model card. Pure.

The card is README.md; its front matter is YAML between two lines of `---`
(https://huggingface.co/docs/hub/model-cards#model-card-metadata).
"""

import re
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict

CARD = "README.md"
# A front matter has a few hundred bytes; a longer one is ignored.
MAX_BYTES = 64 << 10
MAX_FIELD_CHARS = 200
_FRONT_MATTER = re.compile(r"\A\ufeff?---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(\r?\n|\Z)", re.DOTALL)


class Card(BaseModel):
    """The fields kept of a card."""

    model_config = ConfigDict(frozen=True)

    license: str | None = None
    license_link: str | None = None
    base_model: tuple[str, ...] = ()


def parse_card(content: bytes) -> Card:
    """Parse the first bytes of README.md; missing or malformed fields are left out."""
    found = _FRONT_MATTER.match(content[:MAX_BYTES].decode(errors="replace"))
    try:
        fields: Any = yaml.safe_load(found[1]) if found else None
    except (yaml.YAMLError, ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        return Card()
    licence = _short_string(fields.get("license"))
    if licence in (None, "other"):  # the name is in a field of its own
        licence = _short_string(fields.get("license_name")) or licence
    base = fields.get("base_model")
    names = [_short_string(each) for each in (base if isinstance(base, list) else [base])[:20]]
    return Card(
        license=licence,
        license_link=_short_string(fields.get("license_link")),
        base_model=tuple(name for name in names if name),
    )


def _short_string(value: object) -> str | None:
    if isinstance(value, list) and value:
        value = value[0]
    return value.strip() if isinstance(value, str) and 0 < len(value.strip()) <= MAX_FIELD_CHARS else None
