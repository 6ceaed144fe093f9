"""Settings from the environment: one base class, secrets from files, and failures a person can act on.

Every program of the cluster subclasses `Settings`, gives each field a `description`, and calls `load_settings` once at
start. Nothing else reads the environment.
"""

import os
import re
from pathlib import Path
from typing import Any, TypeVar

from pydantic import SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict
from pydantic_settings.exceptions import SettingsError as NotDecodable

S = TypeVar("S", bound=BaseSettings)


class SettingsError(Exception):
    """The environment holds a value the program cannot start with; the message names variable, value and remedy."""


class _FileSource(PydanticBaseSettingsSource):
    """Reads the field `x` from the file that the variable `X_FILE` names, as Docker and Kubernetes hand secrets in."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """Return (value or None, key, value_is_complex) for one field.

        Raises SettingsError when the file is named but cannot be read, or holds nothing: a secret that never arrived
        must not look like one that was never wanted.
        """
        variable = f"{field_name.upper()}_FILE"
        path = os.environ.get(variable)
        if not path or f"{field_name}_file" in self.settings_cls.model_fields:
            return None, field_name, False
        try:
            value = Path(path).read_text(encoding="utf-8").strip()
        except OSError as error:
            raise SettingsError(f"{variable}={path} cannot be read: {error.strerror}.") from error
        except UnicodeDecodeError:  # not chained: it carries the file's bytes
            raise SettingsError(f"{variable}={path} is not UTF-8 text.") from None
        if not value:
            raise SettingsError(f"{variable}={path} is empty. Write the value into it, or unset {variable}.")
        return value, field_name, False

    def __call__(self) -> dict[str, Any]:
        """Return the values of all fields whose `X_FILE` variable is set."""
        values = {name: self.get_field_value(field, name)[0] for name, field in self.settings_cls.model_fields.items()}
        return {name: value for name, value in values.items() if value is not None}


class Settings(BaseSettings):
    """Base of every program's settings. An empty variable counts as unset, as `X=` in an env file is meant."""

    # Inputs are hidden because pydantic's own message, printed with a traceback, would show secrets.
    model_config = SettingsConfigDict(env_ignore_empty=True, frozen=True, extra="forbid", hide_input_in_errors=True)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Order the sources: arguments, then environment, then `X_FILE`. No `.env` file and no secrets folder."""
        return init_settings, env_settings, _FileSource(settings_cls)


def load_settings(settings_class: type[S], **overrides: Any) -> S:
    """Build `settings_class` from `overrides` and the environment.

    Raises SettingsError with one line per wrong variable: its name, what it got, what it takes.
    """
    try:
        return settings_class(**overrides)
    except ValidationError as error:
        raise SettingsError(_explain(settings_class, error)) from error
    except NotDecodable as error:  # a structured field whose variable is not JSON
        raise SettingsError(f"{error}: {error.__cause__ or 'not JSON'}") from None


def keys_of(secret: SecretStr | None, variable: str) -> list[str]:
    """The keys in a secret, which commas or line breaks separate.

    Raises SettingsError when `variable` is set but holds none: that must not open what it was to lock.
    """
    if secret is None:
        return []
    keys = [key.strip() for key in re.split(r"[,\n]", secret.get_secret_value())]
    if not any(keys):
        raise SettingsError(f"{variable} holds no key. Write keys with commas between them, or unset it.")
    return [key for key in keys if key]


def _explain(settings_class: type[BaseSettings], error: ValidationError) -> str:
    return "\n".join(_line(settings_class, problem) for problem in error.errors())


def _line(settings_class: type[BaseSettings], problem: ErrorDetails) -> str:
    message = problem["msg"].removeprefix("Value error, ").rstrip(".")
    if not problem["loc"]:  # several fields that do not go together; the input would be all of them, secrets included
        return f"{message}."
    name = str(problem["loc"][0])
    field = settings_class.model_fields.get(name)
    if field is None:
        return f"{name.upper()} is not a setting of this program."
    got = "is not set" if problem["type"] == "missing" else f"is {_shown(field, problem['input'])}"
    takes = f" It takes: {field.description}." if field.description else ""
    return f"{name.upper()} {got}: {message}.{takes}"


def _shown(field: FieldInfo, value: object) -> str:
    """Show a wrong value, except a secret's: settings errors end up in logs."""
    return "set to a value not shown here" if "Secret" in str(field.annotation) else repr(value)
