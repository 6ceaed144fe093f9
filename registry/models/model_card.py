"""What a model's card says of its licence and its origin. Pure.

The card is README.md; its front matter is YAML between two lines of `---`
(https://huggingface.co/docs/hub/model-cards#model-card-metadata).
"""

import re
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict

CARD = "README.md"
# A front matter is a few hundred bytes; one that is longer is not looked at.
MAX_BYTES = 64 << 10
MAX_WORDS = 200
_FRONT_MATTER = re.compile(r"\A\ufeff?---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(\r?\n|\Z)", re.DOTALL)


class Card(BaseModel):
    """What is kept of a card."""

    model_config = ConfigDict(frozen=True)

    license: str | None = None
    license_link: str | None = None
    base_model: tuple[str, ...] = ()


def parse_card(content: bytes) -> Card:
    """The card in the first bytes of README.md; what is not there, or not as it should be, is left out."""
    found = _FRONT_MATTER.match(content[:MAX_BYTES].decode(errors="replace"))
    try:
        fields: Any = yaml.safe_load(found[1]) if found else None
    except (yaml.YAMLError, ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        return Card()
    licence = _word(fields.get("license"))
    if licence in (None, "other"):  # which says nothing; the name stands beside it
        licence = _word(fields.get("license_name")) or licence
    base = fields.get("base_model")
    words = [_word(each) for each in (base if isinstance(base, list) else [base])[:20]]
    return Card(
        license=licence,
        license_link=_word(fields.get("license_link")),
        base_model=tuple(word for word in words if word),
    )


def _word(value: object) -> str | None:
    """A string that fits in a line."""
    if isinstance(value, list) and value:
        value = value[0]
    return value.strip() if isinstance(value, str) and 0 < len(value.strip()) <= MAX_WORDS else None
