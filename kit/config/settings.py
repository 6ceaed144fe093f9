"""Settings from the environment: one base class, secrets from files, errors that name variable and remedy.

Every program subclasses `Settings`, gives each field a `description`, and calls `load_settings` once at start.
Nothing else reads the environment.
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
    """An invalid setting; the message names variable, value and remedy."""


class _FileSource(PydanticBaseSettingsSource):
    """Source that reads the field `x` from the file named by `X_FILE`, as Docker and Kubernetes mount secrets."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """Return (value or None, key, value_is_complex) for one field.

        Raises SettingsError if the file is unreadable or empty: a missing secret must not count as an unset one.
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
        """Return the values of all fields with an `X_FILE` variable."""
        values = {name: self.get_field_value(field, name)[0] for name, field in self.settings_cls.model_fields.items()}
        return {name: value for name, value in values.items() if value is not None}


class Settings(BaseSettings):
    """Base of every program's settings. An empty variable counts as unset, like `X=` in an env file."""

    # Pydantic's own message, printed with a traceback, would show secrets.
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
        """Return the sources in order: arguments, environment, `X_FILE`; no `.env` file, no secrets folder."""
        return init_settings, env_settings, _FileSource(settings_cls)


def load_settings(settings_class: type[S], **overrides: Any) -> S:
    """Build `settings_class` from `overrides` and the environment.

    Raises SettingsError with one line per invalid variable: its name, its value, the accepted values.
    """
    try:
        return settings_class(**overrides)
    except ValidationError as error:
        raise SettingsError("\n".join(_line(settings_class, problem) for problem in error.errors())) from error
    except NotDecodable as error:  # a structured field whose variable is not JSON
        raise SettingsError(f"{error}: {error.__cause__ or 'not JSON'}") from None


def keys_of(secret: SecretStr | None, variable: str) -> list[str]:
    """Split a secret into keys at commas or line breaks.

    Raises SettingsError if `variable` is set but has no key: that must not disable the check.
    """
    if secret is None:
        return []
    keys = [key.strip() for key in re.split(r"[,\n]", secret.get_secret_value())]
    if not any(keys):
        raise SettingsError(f"{variable} contains no key. Separate keys with commas, or unset it.")
    return [key for key in keys if key]


def _line(settings_class: type[BaseSettings], problem: ErrorDetails) -> str:
    message = problem["msg"].removeprefix("Value error, ").rstrip(".")
    if not problem["loc"]:  # from a check over several fields; the input would be all of them, secrets included
        return f"{message}."
    name = str(problem["loc"][0])
    field = settings_class.model_fields.get(name)
    if field is None:
        return f"{name.upper()} is not a setting of this program."
    if problem["type"] == "missing":
        got = "is not set"
    elif "Secret" in str(field.annotation):  # settings errors end up in logs
        got = "is set to a value not shown here"
    else:
        got = f"is {problem['input']!r}"
    expected = f" Expected: {field.description}." if field.description else ""
    return f"{name.upper()} {got}: {message}.{expected}"
