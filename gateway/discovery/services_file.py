"""Parser of SERVICES_FILE: backends as YAML, with the fields of SERVICES."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gateway.discovery.target import MAX_WEIGHT, MIN_WEIGHT, SERVICE_NAME, Target, make_target
from kit.config.catalogue import Kind
from kit.config.settings import SettingsError
from kit.config.strict_yaml import load_yaml

EXAMPLE = "{llm-primary: {url: http://10.0.0.1:8000, kind: llm, models: [org/name], weight: 2}}"


class _Service(BaseModel):
    """The fields of one backend."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str
    kind: Kind | None = None
    models: tuple[str, ...] = ()
    weight: float = Field(1.0, ge=MIN_WEIGHT, le=MAX_WEIGHT)
    dns: bool = False
    optional: bool = False


def read_services(path: Path) -> tuple[Target, ...]:
    """Return the backends of the file, in its order.

    Raises SettingsError with a one-line message. A file without backends is an error, because a file that is just being
    written looks like that.
    """
    try:
        document = load_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror}. Set SERVICES_FILE.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(document, dict) or not document:
        raise SettingsError(f"{path} has no backends. It must map names to fields, such as {EXAMPLE}")
    return tuple(_target(path, name, fields) for name, fields in document.items())


def _target(path: Path, name: object, fields: Any) -> Target:
    if not isinstance(name, str) or not SERVICE_NAME.match(name):
        raise SettingsError(f"{path}: invalid backend name {name!r}: use letters, digits, '.', '_' and '-'")
    if isinstance(fields, str):
        fields = {"url": fields}
    if not isinstance(fields, dict):
        raise SettingsError(f"{path}: {name}: expected a URL or fields as in {EXAMPLE}, got {fields!r}")
    try:
        service = _Service.model_validate(fields)
        target = make_target(name, service.url, kind=service.kind, models=service.models, by_dns=service.dns)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        fields_are = ", ".join(_Service.model_fields)
        raise SettingsError(f"{path}: {name}: {problems}. Valid fields: {fields_are}.") from error
    except ValueError as error:
        raise SettingsError(f"{path}: {error}") from error
    if service.optional and not service.dns:
        raise SettingsError(f"{path}: {name}: optional requires dns, which shows whether the service exists")
    return replace(target, weight=service.weight, optional=service.optional)
