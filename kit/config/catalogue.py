"""The model catalogue, `models.yaml`: the models that the cluster serves, each pinned to a commit."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from kit.config.hub_names import check_name, check_repo, check_revision
from kit.config.settings import SettingsError
from kit.config.strict_yaml import load_yaml
from kit.errors import ModelNotFound

Kind = Literal["llm", "multimodal", "embedding", "reranker", "transcription"]

VIRTUAL_MODEL = "cluster"


class Entry(BaseModel):
    """One model of the catalogue."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(description="the key in models.yaml, a short name")
    kind: Kind
    hf_repo: str = Field(description="the repository on the Hugging Face Hub, ORG/NAME")
    revision: str = Field("main", description="a commit (40 hex digits), branch or tag")
    aliases: tuple[str, ...] = ()
    fallbacks: tuple[str, ...] = Field((), description="models to use, in this order, while no backend of this one can")
    optional: bool = Field(False, description="the cluster counts as complete without it")
    description: str = ""
    allow_patterns: tuple[str, ...] | None = None
    ignore_patterns: tuple[str, ...] | None = None
    engine_args: dict[str, Any] = Field(default_factory=dict)
    context_length: int | None = Field(None, ge=1, description="tokens, prompt and response together")
    default_max_tokens: int | None = Field(None, ge=1, description="tokens of a response if the request sets no limit")
    supports_tools: bool = False

    @field_validator("name", "aliases")
    @classmethod
    def _names(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        for name in (value,) if isinstance(value, str) else value:
            check_name(name)
            if name == VIRTUAL_MODEL:
                raise ValueError(f"{name!r} is reserved for the virtual model that stands for the best one")
        return value

    @field_validator("hf_repo")
    @classmethod
    def _repo(cls, value: str) -> str:
        if "/" not in value:
            raise ValueError(f"{value!r} is not a repository, ORG/NAME")
        return check_repo(value)

    @field_validator("revision")
    @classmethod
    def _revision(cls, value: str) -> str:
        return check_revision(value)

    @property
    def names(self) -> tuple[str, ...]:
        """All names of this model in requests, without duplicates: name, aliases, repository."""
        return tuple(dict.fromkeys((self.name, *self.aliases, self.hf_repo)))


class Catalogue:
    """The models of one `models.yaml`, looked up by name, alias or repository."""

    def __init__(self, entries: list[Entry], source: str = "models.yaml") -> None:
        """Raises SettingsError if two models share a name or a fallback is not usable; it names `source`."""
        self._by_any_name: dict[str, Entry] = {}
        self._entries = {entry.name: entry for entry in entries}
        for entry in entries:
            for name in entry.names:
                other = self._by_any_name.setdefault(name, entry)
                if other is not entry:
                    raise SettingsError(f"{source}: {other.name} and {entry.name} both use the name {name!r}.")
        for entry in entries:
            for name in entry.fallbacks:
                self._check_fallback(entry, name, source)

    def _check_fallback(self, entry: Entry, name: str, source: str) -> None:
        other = self.find(name)
        if other is None:
            raise SettingsError(f"{source}: {entry.name}: fallbacks: unknown model {name!r}.")
        if other is entry:
            raise SettingsError(f"{source}: {entry.name}: fallbacks: {name!r} is the model itself.")
        if other.kind != entry.kind and (entry.kind, other.kind) != ("llm", "multimodal"):
            raise SettingsError(
                f"{source}: {entry.name}: fallbacks: {name!r} is of kind {other.kind} and cannot replace an "
                f"{entry.kind}."
            )

    @classmethod
    def load(cls, path: Path) -> "Catalogue":
        """Read and check the file at `path`.

        Raises SettingsError with file, model, key and reason.
        """
        try:
            document = load_yaml(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise SettingsError(f"The catalogue {path} cannot be read: {error.strerror}. Set CATALOGUE.") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise SettingsError(f"The catalogue {path} is not YAML: {error}") from error
        if not isinstance(document, dict) or not document:
            raise SettingsError(f"The catalogue {path} holds no models. It maps a name to {{kind, hf_repo, ...}}.")
        return cls([_entry(path, name, fields) for name, fields in document.items()], str(path))

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, name: str) -> Entry | None:
        """Return the model with this name, alias or repository, or None."""
        return self._by_any_name.get(name)

    def resolve(self, name: str) -> Entry:
        """Like `find`, but raise ModelNotFound, which lists the known names."""
        entry = self.find(name)
        if entry is None:
            raise ModelNotFound(name, self._entries)
        return entry


def _entry(path: Path, name: object, fields: object) -> Entry:
    if not isinstance(name, str):
        raise SettingsError(f"{path}: {name!r} is a {type(name).__name__} in YAML; put the model's name into quotes.")
    if not isinstance(fields, dict):
        raise SettingsError(f"{path}: {name}: expected {{kind, hf_repo, ...}}, got {fields!r}")
    if "name" in fields:
        raise SettingsError(f"{path}: {name}: name: not a key here; the entry's key, {name!r}, is the name.")
    try:
        return Entry.model_validate({**fields, "name": name})
    except ValidationError as error:
        problems = [
            f"{path}: {name}: {'.'.join(str(part) for part in problem['loc'])}: "
            f"{problem['msg'].removeprefix('Value error, ')} (got {problem['input']!r})"
            for problem in error.errors()
        ]
        raise SettingsError("\n".join(problems)) from error
