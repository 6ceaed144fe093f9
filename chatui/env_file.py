"""Env files (NAME=value lines): a tolerant reader, and a writer for Node's dotenv. Pure.

The reader accepts more than Compose's `env_file` or dotenv: JSON may span several lines without quotes.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

# Chat UI's settings with JSON values.
JSON_SETTINGS = frozenset(
    {
        "MODELS", "OLD_MODELS", "MCP_SERVERS", "USAGE_LIMITS", "ALLOWED_USER_EMAILS", "ALLOWED_USER_DOMAINS",
        "ALTERNATIVE_REDIRECT_URLS", "OPENID_CONFIG", "PUBLIC_FEATURE_ANNOUNCEMENTS",
    }
)  # fmt: skip

_NAME = re.compile(r"[ \t]*(?:export[ \t]+)?([A-Za-z_][A-Za-z0-9_]*)[ \t]*=[ \t]*")
# Allowed after a quoted value or JSON.
_REST = re.compile(r"[ \t]*(?:#[^\n]*)?(?:\n|\Z)")
_REMARK = re.compile(r"(?:\A|[ \t]+)#.*")
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", '"': '"', "\\": "\\", "$": "$"}
_DECODER = json.JSONDecoder()


class EnvFileError(Exception):
    """A line that cannot be parsed; the message begins with its number and says what to do."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(f"line {line}: {message}")


@dataclass(frozen=True)
class Setting:
    """One setting: its value, and the line where the value begins."""

    name: str
    value: str
    line: int


def read(text: str) -> dict[str, Setting]:
    """Return the settings of a file by name; the last of several with one name counts. Raises EnvFileError."""
    text = text.removeprefix("\ufeff").replace("\r\n", "\n")
    return {setting.name: setting for setting in _settings(text)}


def _settings(text: str) -> Iterator[Setting]:
    position = 0
    while position < len(text):
        end = _line_end(text, position)
        line = text[position:end].strip()
        # Skip a fence that was copied along with a block of Markdown.
        if not line or line.startswith(("#", "```")):
            position = end + 1
            continue
        match = _NAME.match(text, position)
        if match is None:
            # Do not show the line: it may contain a key, and the message is logged.
            raise EnvFileError(
                _line_of(text, position), "this is not a setting. Write NAME=value, or # before a comment."
            )
        value, position = _value(text, match[1], match.end())
        yield Setting(match[1], value, _line_of(text, match.end()))


def _value(text: str, name: str, start: int) -> tuple[str, int]:
    """Return the value that begins at `start`, and the start of the next line."""
    first = text[start : start + 1]
    if first in ("'", '"', "`"):
        value, end = _quoted(text, name, start)
    elif first in ("[", "{") and name in JSON_SETTINGS:
        end = _json_end(text, name, start)
        value = text[start:end]
    else:
        end = _line_end(text, start)
        return _REMARK.sub("", text[start:end]).strip(), end + 1
    rest = _REST.match(text, end)
    if rest is None:
        raise EnvFileError(_line_of(text, end), f"unexpected text after the value of {name}. Remove it.")
    return value, rest.end()


def _quoted(text: str, name: str, start: int) -> tuple[str, int]:
    quote = text[start]
    end = start + 1
    while end < len(text) and text[end] != quote:
        end += 2 if quote == '"' and text[end] == "\\" else 1
    if end >= len(text):
        raise EnvFileError(_line_of(text, start), f"the {quote} before the value of {name} is not closed.")
    value = text[start + 1 : end]
    if quote == '"':
        value = re.sub(r"\\(.)", lambda escape: _ESCAPES.get(escape[1], escape[0]), value, flags=re.DOTALL)
    return value, end + 1


def _json_end(text: str, name: str, start: int) -> int:
    try:
        return _DECODER.raw_decode(text, start)[1]
    except json.JSONDecodeError as error:
        raise EnvFileError(
            _line_of(text, error.pos), f"{name} is not valid JSON: {error.msg}. Check the end of the line before, too."
        ) from None


def _line_end(text: str, position: int) -> int:
    end = text.find("\n", position)
    return len(text) if end < 0 else end


def _line_of(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1


def json_of(setting: Setting) -> Any:
    """Parse the JSON value of a setting; backticks around it are allowed, as in Chat UI. Raises EnvFileError."""
    text = setting.value.strip()
    if len(text) > 1 and text[0] == text[-1] == "`":
        text = text[1:-1]
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = setting.line + error.lineno - 1
        raise EnvFileError(line, f"{setting.name} is not valid JSON: {error.msg}.") from None


def items_of(setting: Setting) -> list[tuple[int, Any]]:
    """Return the items of a JSON list, each with its line. Raises EnvFileError."""
    items = json_of(setting)
    if not isinstance(items, list):
        raise EnvFileError(setting.line, f"{setting.name} is not a list. Write {setting.name}=[{{...}}, {{...}}].")
    text, position, found = setting.value, setting.value.index("[") + 1, []
    for item in items:
        position += len(text[position:]) - len(text[position:].lstrip(" \t\n,"))
        found.append((setting.line + _line_of(text, position) - 1, item))
        position = _DECODER.raw_decode(text, position)[1]
    return found


def json_value(document: Any) -> str:
    """Encode as JSON without single quotes and without `$`, which dotenv-expand would expand."""
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
    return text.replace("'", r"\u0027").replace("$", r"\u0024")


def render(settings: Mapping[str, str]) -> str:
    """Return the text of a file that dotenv and dotenv-expand read back as `settings`.

    dotenv has no escape for a quote within quotes. Raises ValueError with the name of a setting that cannot be written.
    """
    return "".join(f"{name}={_written(name, value)}\n" for name, value in settings.items())


def _written(name: str, value: str) -> str:
    # dotenv-expand expands an unescaped $NAME.
    expanded = value.replace("$", r"\$")
    for quote in ("'", "`"):
        if quote not in value and not value.endswith("\\"):
            return f"{quote}{expanded}{quote}"
    raise ValueError(f"{name} contains both ' and `, or ends with a backslash. Choose another value.")
