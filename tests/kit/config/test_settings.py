"""Settings from the environment: sources, validation, error messages."""

import os
import traceback
from pathlib import Path

import pytest
from pydantic import Field, SecretStr, field_validator, model_validator

from kit.config.settings import Settings, SettingsError, load_settings
from kit.web.app import HttpSettings

SECRET = "hunter2-very-secret"


class Program(Settings):
    """A program with one field of each sort."""

    name: str = Field(description="any text")
    workers: int = Field(1, ge=1, le=8, description="how many workers, 1 to 8")
    token: SecretStr | None = Field(None, min_length=8, description="a bearer token")
    pin: SecretStr | None = Field(None, description="a secret number")
    folder: Path = Path("here")
    limits: dict[str, int] = Field(default_factory=dict, description="JSON, a name to a number")

    @field_validator("pin")
    @classmethod
    def _digits(cls, value: SecretStr | None) -> SecretStr | None:
        if value and not value.get_secret_value().isdigit():
            raise ValueError("only digits.")
        return value

    @model_validator(mode="after")
    def _together(self) -> "Program":
        if self.workers == 7 and self.token is not None:
            raise ValueError("WORKERS=7 and TOKEN do not go together")
        return self


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in list(os.environ):
        if variable.lower().removesuffix("_file") in {*Program.model_fields, *HttpSettings.model_fields}:
            monkeypatch.delenv(variable)


def refusal(**overrides: object) -> str:
    """Load with something wrong; returns the message."""
    with pytest.raises(SettingsError) as caught:
        load_settings(Program, **overrides)
    shown = "".join(traceback.format_exception(caught.value))
    assert SECRET not in shown, "a secret must not even appear in a traceback"
    return str(caught.value)


def test_defaults_and_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NAME", "one")
    monkeypatch.setenv("WORKERS", "4")
    settings = load_settings(Program)
    assert (settings.name, settings.workers, settings.token, settings.folder) == ("one", 4, None, Path("here"))


def test_arguments_override_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NAME", "environment")
    assert load_settings(Program, name="argument").name == "argument"


def test_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    """`WORKERS=` means the default; `NAME=` means that it is missing."""
    monkeypatch.setenv("WORKERS", "")
    assert load_settings(Program, name="x").workers == 1
    monkeypatch.setenv("NAME", "")
    assert refusal() == "NAME is not set: Field required. Expected: any text."


def test_settings_are_frozen() -> None:
    settings = load_settings(Program, name="x")
    with pytest.raises(ValueError, match="frozen"):
        settings.name = "y"  # type: ignore[misc]  # what the test tries


@pytest.mark.parametrize("value", ["0", "9", "-1", "two", "1.5", "1e3"])
def test_invalid_value_names_variable_value_and_remedy(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("NAME", "x")
    monkeypatch.setenv("WORKERS", value)
    message = refusal()
    assert message.startswith(f"WORKERS is '{value}': ")
    assert message.endswith(". Expected: how many workers, 1 to 8.")
    assert "\n" not in message


def test_every_invalid_variable_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line each."""
    monkeypatch.setenv("WORKERS", "many")
    lines = refusal().splitlines()
    assert [line.split()[0] for line in lines] == ["NAME", "WORKERS"]


def test_unknown_argument_is_rejected_without_its_value() -> None:
    """The value may be a secret under a misspelt name."""
    message = refusal(name="x", tokn=SECRET)
    assert message == "TOKN is not a setting of this program."


@pytest.mark.parametrize(("variable", "value"), [("TOKEN", "short"), ("PIN", SECRET)])
def test_invalid_secret_is_not_shown(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    monkeypatch.setenv("NAME", "x")
    monkeypatch.setenv(variable, value)
    message = refusal()
    assert message.startswith(f"{variable} is set to a value not shown here: ")
    assert value not in message


def test_error_over_several_fields_shows_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """The input of such a check is all fields."""
    monkeypatch.setenv("NAME", "x")
    monkeypatch.setenv("TOKEN", SECRET)
    monkeypatch.setenv("WORKERS", "7")
    assert refusal() == "WORKERS=7 and TOKEN do not go together."


def test_structured_value_must_be_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NAME", "x")
    monkeypatch.setenv("LIMITS", "a=1")
    assert "limits" in refusal().lower()


@pytest.mark.parametrize("content", [SECRET, SECRET + "\n", f"  {SECRET}\r\n"])
def test_value_from_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: str) -> None:
    """`X_FILE` names the file, as for Docker and Kubernetes secrets; surrounding whitespace is stripped."""
    (tmp_path / "secret").write_text(content)
    monkeypatch.setenv("TOKEN_FILE", str(tmp_path / "secret"))
    token = load_settings(Program, name="x").token
    assert token is not None
    assert token.get_secret_value() == SECRET


def test_variable_overrides_its_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "name").write_text("from the file")
    monkeypatch.setenv("NAME_FILE", str(tmp_path / "name"))
    assert load_settings(Program).name == "from the file"
    monkeypatch.setenv("NAME", "from the variable")
    assert load_settings(Program).name == "from the variable"


def test_invalid_secret_from_a_file_is_not_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "pin").write_text(SECRET)
    monkeypatch.setenv("PIN_FILE", str(tmp_path / "pin"))
    assert refusal(name="x").startswith("PIN is set to a value not shown here: only digits.")


def test_missing_secret_file_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TOKEN_FILE", str(tmp_path / "nowhere"))
    assert refusal(name="x") == f"TOKEN_FILE={tmp_path}/nowhere cannot be read: No such file or directory."


def test_folder_instead_of_secret_file_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Docker creates a folder for a bind mount with a missing source."""
    monkeypatch.setenv("TOKEN_FILE", str(tmp_path))
    assert refusal(name="x") == f"TOKEN_FILE={tmp_path} cannot be read: Is a directory."


@pytest.mark.parametrize("content", [b"", b"\n", b"  \n"])
def test_empty_secret_file_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes) -> None:
    """An empty secret would disable a check."""
    (tmp_path / "secret").write_bytes(content)
    monkeypatch.setenv("TOKEN_FILE", str(tmp_path / "secret"))
    assert "is empty" in refusal(name="x")


def test_binary_secret_file_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The message names the file, without its bytes."""
    (tmp_path / "secret").write_bytes(b"\xff\xfe" + SECRET.encode())
    monkeypatch.setenv("TOKEN_FILE", str(tmp_path / "secret"))
    assert refusal(name="x").endswith("is not UTF-8 text.")


@pytest.mark.parametrize(
    ("value", "parts"),
    [("", ()), (",", ()), ("a", ("a",)), ("a,b", ("a", "b")), (" a , b ,", ("a", "b")), ("a b", ("a b",))],
)
def test_comma_separated_list(monkeypatch: pytest.MonkeyPatch, value: str, parts: tuple[str, ...]) -> None:
    monkeypatch.setenv("ALLOWED_HOSTS", value)
    assert load_settings(HttpSettings, port=1).allowed_hosts == parts


def test_comma_separated_list_from_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("a.example, b.example\n")
    monkeypatch.setenv("ALLOWED_HOSTS_FILE", str(tmp_path / "hosts"))
    assert load_settings(HttpSettings, port=1).allowed_hosts == ("a.example", "b.example")


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("PORT", "0"),
        ("PORT", "65536"),
        ("PORT", "http"),
        ("LOG_LEVEL", "loud"),
        ("LOG_FORMAT", "xml"),
        ("ADMIN_TRUSTED_NETWORKS", "10.0.0.1/8"),
        ("ADMIN_TRUSTED_NETWORKS", "every body"),
        ("ADMIN_TRUSTED_NETWORKS", "127.0.0.0/8,::1/129"),
    ],
)
def test_http_settings_reject_invalid_values(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    monkeypatch.setenv("PORT", "8080")
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError, match=variable):
        load_settings(HttpSettings)


@pytest.mark.parametrize("level", ["debug", "INFO", "Warning", "error"])
def test_log_level_is_case_insensitive(level: str) -> None:
    assert load_settings(HttpSettings, port=1, log_level=level).log_level == level


def test_every_setting_has_a_description() -> None:
    """Error messages repeat it."""
    undescribed = [name for name, field in HttpSettings.model_fields.items() if not field.description]
    assert undescribed == []
