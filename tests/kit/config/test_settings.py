"""Settings from the environment: what is taken, what is refused, and how the refusal reads."""

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
    """A variable sets its field; the others keep their defaults."""
    monkeypatch.setenv("NAME", "one")
    monkeypatch.setenv("WORKERS", "4")
    settings = load_settings(Program)
    assert (settings.name, settings.workers, settings.token, settings.folder) == ("one", 4, None, Path("here"))


def test_arguments_win_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a caller passes is not overruled by the environment."""
    monkeypatch.setenv("NAME", "environment")
    assert load_settings(Program, name="argument").name == "argument"


def test_empty_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    """`WORKERS=` in an env file means the default, and `NAME=` means that it is missing."""
    monkeypatch.setenv("WORKERS", "")
    assert load_settings(Program, name="x").workers == 1
    monkeypatch.setenv("NAME", "")
    assert refusal() == "NAME is not set: Field required. Expected: any text."


def test_settings_do_not_change() -> None:
    """They are handed around, so nobody may alter them."""
    settings = load_settings(Program, name="x")
    with pytest.raises(ValueError, match="frozen"):
        settings.name = "y"


@pytest.mark.parametrize("value", ["0", "9", "-1", "two", "1.5", "1e3"])
def test_wrong_value_names_variable_value_and_remedy(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    """The message can be acted on without reading the code."""
    monkeypatch.setenv("NAME", "x")
    monkeypatch.setenv("WORKERS", value)
    message = refusal()
    assert message.startswith(f"WORKERS is '{value}': ")
    assert message.endswith(". Expected: how many workers, 1 to 8.")
    assert "\n" not in message


def test_every_wrong_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """One start shows all that is wrong, a line each."""
    monkeypatch.setenv("WORKERS", "many")
    lines = refusal().splitlines()
    assert [line.split()[0] for line in lines] == ["NAME", "WORKERS"]


def test_unknown_argument_is_refused_without_its_value() -> None:
    """A misspelt argument fails at start; its value may be a secret under a wrong name."""
    message = refusal(name="x", tokn=SECRET)
    assert message == "TOKN is not a setting of this program."


@pytest.mark.parametrize(("variable", "value"), [("TOKEN", "short"), ("PIN", SECRET)])
def test_wrong_secret_is_not_shown(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    """The message says which secret is wrong and why, but not what it is."""
    monkeypatch.setenv("NAME", "x")
    monkeypatch.setenv(variable, value)
    message = refusal()
    assert message.startswith(f"{variable} is set to a value not shown here: ")
    assert value not in message


def test_fields_that_do_not_go_together_show_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """A check over several fields gets all of them as its input; none of it is repeated."""
    monkeypatch.setenv("NAME", "x")
    monkeypatch.setenv("TOKEN", SECRET)
    monkeypatch.setenv("WORKERS", "7")
    assert refusal() == "WORKERS=7 and TOKEN do not go together."


def test_structured_value_that_is_not_json(monkeypatch: pytest.MonkeyPatch) -> None:
    """A field that takes JSON says so in our error class, not in a traceback of the library."""
    monkeypatch.setenv("NAME", "x")
    monkeypatch.setenv("LIMITS", "a=1")
    assert "limits" in refusal().lower()


@pytest.mark.parametrize("content", [SECRET, SECRET + "\n", f"  {SECRET}\r\n"])
def test_value_from_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: str) -> None:
    """`X_FILE` names a file with the value, as Docker and Kubernetes mount secrets; white space around it goes."""
    (tmp_path / "secret").write_text(content)
    monkeypatch.setenv("TOKEN_FILE", str(tmp_path / "secret"))
    token = load_settings(Program, name="x").token
    assert token is not None
    assert token.get_secret_value() == SECRET


def test_variable_wins_over_its_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With both set the variable counts."""
    (tmp_path / "name").write_text("from the file")
    monkeypatch.setenv("NAME_FILE", str(tmp_path / "name"))
    assert load_settings(Program).name == "from the file"
    monkeypatch.setenv("NAME", "from the variable")
    assert load_settings(Program).name == "from the variable"


def test_wrong_secret_from_a_file_is_not_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A secret stays one wherever it came from."""
    (tmp_path / "pin").write_text(SECRET)
    monkeypatch.setenv("PIN_FILE", str(tmp_path / "pin"))
    assert refusal(name="x").startswith("PIN is set to a value not shown here: only digits.")


def test_missing_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A secret that was not mounted is an error, not a start without it."""
    monkeypatch.setenv("TOKEN_FILE", str(tmp_path / "nowhere"))
    assert refusal(name="x") == f"TOKEN_FILE={tmp_path}/nowhere cannot be read: No such file or directory."


def test_file_that_is_a_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Docker makes a folder of a bind mount whose source is missing."""
    monkeypatch.setenv("TOKEN_FILE", str(tmp_path))
    assert refusal(name="x") == f"TOKEN_FILE={tmp_path} cannot be read: Is a directory."


@pytest.mark.parametrize("content", [b"", b"\n", b"  \n"])
def test_empty_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes) -> None:
    """An empty secret would switch a lock off; it is an error."""
    (tmp_path / "secret").write_bytes(content)
    monkeypatch.setenv("TOKEN_FILE", str(tmp_path / "secret"))
    assert "is empty" in refusal(name="x")


def test_file_that_is_not_text(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A binary file is refused by name, without its bytes."""
    (tmp_path / "secret").write_bytes(b"\xff\xfe" + SECRET.encode())
    monkeypatch.setenv("TOKEN_FILE", str(tmp_path / "secret"))
    assert refusal(name="x").endswith("is not UTF-8 text.")


@pytest.mark.parametrize(
    ("value", "parts"),
    [("", ()), (",", ()), ("a", ("a",)), ("a,b", ("a", "b")), (" a , b ,", ("a", "b")), ("a b", ("a b",))],
)
def test_comma_separated(monkeypatch: pytest.MonkeyPatch, value: str, parts: tuple[str, ...]) -> None:
    """Lists are comma-separated, with forgiving white space."""
    monkeypatch.setenv("ALLOWED_HOSTS", value)
    assert load_settings(HttpSettings, port=1).allowed_hosts == parts


def test_comma_separated_from_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Lists may come from a file as well."""
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
def test_http_settings_refuse(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    """Impossible values of what every server takes."""
    monkeypatch.setenv("PORT", "8080")
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError, match=variable):
        load_settings(HttpSettings)


@pytest.mark.parametrize("level", ["debug", "INFO", "Warning", "error"])
def test_log_levels(level: str) -> None:
    """Levels may be written in any case."""
    assert load_settings(HttpSettings, port=1, log_level=level).log_level == level


def test_every_setting_is_described() -> None:
    """Each setting has a sentence, which its errors repeat."""
    undescribed = [name for name, field in HttpSettings.model_fields.items() if not field.description]
    assert undescribed == []
