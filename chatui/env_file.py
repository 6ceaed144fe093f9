"""Files of NAME=value lines: read as people write them, written so that Node's dotenv reads them back. Pure.

Read is more than Compose's `env_file` or dotenv take: a setting that is JSON may stand there without quotes over
several lines, as in the quick reference.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

# Chat UI's settings that hold JSON.
JSON_SETTINGS = frozenset(
    {
        "MODELS", "OLD_MODELS", "MCP_SERVERS", "USAGE_LIMITS", "ALLOWED_USER_EMAILS", "ALLOWED_USER_DOMAINS",
        "ALTERNATIVE_REDIRECT_URLS", "OPENID_CONFIG", "PUBLIC_FEATURE_ANNOUNCEMENTS",
    }
)  # fmt: skip

_NAME = re.compile(r"[ \t]*(?:export[ \t]+)?([A-Za-z_][A-Za-z0-9_]*)[ \t]*=[ \t]*")
# What may stand after a value that has an end of its own.
_REST = re.compile(r"[ \t]*(?:#[^\n]*)?(?:\n|\Z)")
_REMARK = re.compile(r"(?:\A|[ \t]+)#.*")
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", '"': '"', "\\": "\\", "$": "$"}
_DECODER = json.JSONDecoder()


class EnvFileError(Exception):
    """A line that cannot be read; the message begins with its number and says what to do."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(f"line {line}: {message}")


@dataclass(frozen=True)
class Setting:
    """One setting: its value, and the line on which that begins."""

    name: str
    value: str
    line: int


def read(text: str) -> dict[str, Setting]:
    """The settings of a file, by name. Of two with one name the last counts. Raises EnvFileError."""
    text = text.removeprefix("\ufeff").replace("\r\n", "\n")
    return {setting.name: setting for setting in _settings(text)}


def _settings(text: str) -> Iterator[Setting]:
    position = 0
    while position < len(text):
        end = _line_end(text, position)
        line = text[position:end].strip()
        # A fence comes along when a block is copied out of Markdown.
        if not line or line.startswith(("#", "```")):
            position = end + 1
            continue
        match = _NAME.match(text, position)
        if match is None:
            # What stands there is not shown: it may be a key, and this goes into a log.
            raise EnvFileError(_line_of(text, position), "this is no setting. Write NAME=value, or # before a remark.")
        value, position = _value(text, match[1], match.end())
        yield Setting(match[1], value, _line_of(text, match.end()))


def _value(text: str, name: str, start: int) -> tuple[str, int]:
    """The value that begins at `start`, and where the next line begins."""
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
        raise EnvFileError(_line_of(text, end), f"something stands after the end of {name}. Remove it.")
    return value, rest.end()


def _quoted(text: str, name: str, start: int) -> tuple[str, int]:
    quote = text[start]
    end = start + 1
    while end < len(text) and text[end] != quote:
        end += 2 if quote == '"' and text[end] == "\\" else 1
    if end >= len(text):
        raise EnvFileError(_line_of(text, start), f"the {quote} before the value of {name} is never closed.")
    value = text[start + 1 : end]
    if quote == '"':
        value = re.sub(r"\\(.)", lambda escape: _ESCAPES.get(escape[1], escape[0]), value, flags=re.DOTALL)
    return value, end + 1


def _json_end(text: str, name: str, start: int) -> int:
    try:
        return _DECODER.raw_decode(text, start)[1]
    except json.JSONDecodeError as error:
        raise EnvFileError(
            _line_of(text, error.pos), f"{name} is not JSON here: {error.msg}. Look at the end of the line before, too."
        ) from None


def _line_end(text: str, position: int) -> int:
    end = text.find("\n", position)
    return len(text) if end < 0 else end


def _line_of(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1


def json_of(setting: Setting) -> Any:
    """The JSON that a setting holds, backticks around it allowed, as Chat UI allows them. Raises EnvFileError."""
    text = setting.value.strip()
    if len(text) > 1 and text[0] == text[-1] == "`":
        text = text[1:-1]
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = setting.line + error.lineno - 1
        raise EnvFileError(line, f"{setting.name} is not JSON here: {error.msg}.") from None


def items_of(setting: Setting) -> list[tuple[int, Any]]:
    """The items of a setting that is a JSON list, each with its line. Raises EnvFileError."""
    items = json_of(setting)
    if not isinstance(items, list):
        raise EnvFileError(setting.line, f"{setting.name} is no list. Write {setting.name}=[{{...}}, {{...}}].")
    text, position, found = setting.value, setting.value.index("[") + 1, []
    for item in items:
        position += len(text[position:]) - len(text[position:].lstrip(" \t\n,"))
        found.append((setting.line + _line_of(text, position) - 1, item))
        position = _DECODER.raw_decode(text, position)[1]
    return found


def json_value(document: Any) -> str:
    """A document as JSON that needs no escape in single quotes, and holds nothing that dotenv-expand would expand."""
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
    return text.replace("'", r"\u0027").replace("$", r"\u0024")


def render(settings: Mapping[str, str]) -> str:
    """The file that dotenv and dotenv-expand read back as `settings`.

    dotenv knows no escape for a quote: the text between quotes ends at the next of them. Raises ValueError with the
    name of a setting that cannot be written.
    """
    return "".join(f"{name}={_written(name, value)}\n" for name, value in settings.items())


def _written(name: str, value: str) -> str:
    # An unescaped $NAME would be expanded; `\$` is a plain $.
    expanded = value.replace("$", r"\$")
    for quote in ("'", "`"):
        if quote not in value and not value.endswith("\\"):
            return f"{quote}{expanded}{quote}"
    raise ValueError(f"{name} holds both ' and `, or ends in a backslash. Choose another value.")
