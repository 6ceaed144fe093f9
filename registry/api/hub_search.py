"""The filters and orders of the Hub's `GET /api/models`. Pure.

Parameters: https://huggingface.co/docs/hub/api and the requests of huggingface_hub and huggingface.js. There are no
statistics and no inference providers here: nothing matches those filters, and those orders keep the order by name.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

from kit.errors import InvalidRequest
from registry.models.model_metadata import Metadata

# Each must be among the tags, which include library, task, language, licence, datasets and base models.
_TAG_FILTERS = frozenset({"filter", "library", "language", "task", "tags"})
_UNSUPPORTED = frozenset({"apps", "num_parameters"})
_NEVER = frozenset({"inference", "inference_provider"})
_DETAILS = frozenset({"cardData", "config", "siblings"})
_BY_TIME = frozenset({"createdAt", "created_at", "lastModified", "last_modified"})


@dataclass(frozen=True)
class ModelQuery:
    """The filters of one request."""

    words: tuple[str, ...]
    author: str
    pipeline_tag: str
    tags: tuple[str, ...]
    is_possible: bool
    details: bool
    """Whether the entries include card data, configuration and files."""

    @classmethod
    def parse(cls, parameters: Iterable[tuple[str, str]], search: str, author: str, pipeline_tag: str) -> Self:
        """Read the repeatable parameters. Raises InvalidRequest for a filter that cannot be answered here."""
        given = [(name.removesuffix("[]"), value) for name, value in parameters if value]
        unsupported = sorted(name for name, _ in given if name in _UNSUPPORTED)
        for name in unsupported:
            raise InvalidRequest(f"This registry cannot filter models by {name}. Leave it out.", param=name)
        tags = [tag for name, value in given if name in _TAG_FILTERS for tag in value.split(",") if tag]
        is_possible = not any(name in _NEVER or (name == "gated" and _is_true(value)) for name, value in given)
        details = any(
            (name in ("full", "cardData", "config") and _is_true(value)) or (name == "expand" and value in _DETAILS)
            for name, value in given
        )
        return cls(tuple(search.lower().split()), author.lower(), pipeline_tag, tuple(tags), is_possible, details)

    def matches_id(self, repo: str) -> bool:
        """Whether the id has all words and the author."""
        name = repo.lower()
        by_author = not self.author or name.startswith(f"{self.author}/")
        return self.is_possible and by_author and all(word in name for word in self.words)

    def matches(self, metadata: Metadata) -> bool:
        """Whether the model has the task and all tags."""
        return self.pipeline_tag in ("", metadata.pipeline_tag) and set(self.tags) <= set(metadata.tags)


def in_order(entries: list[dict[str, Any]], sort: str, *, descending: bool) -> list[dict[str, Any]]:
    """Return the entries, sorted by name, in the requested order."""
    if sort in _BY_TIME:
        return sorted(entries, key=lambda entry: str(entry["createdAt"]), reverse=descending)
    return entries


def _is_true(value: str) -> bool:
    return value.lower() in ("1", "true", "auto", "manual")
