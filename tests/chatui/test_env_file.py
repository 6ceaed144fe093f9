"""Reading chatui.env, and writing a file that dotenv reads back."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import dotenv
import pytest

from chatui.env_file import EnvFileError, Setting, items_of, json_of, json_value, read, render

BACKTICK = "`"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("A=plain", "plain"),
        ("A=", ""),
        ("A = spaced out  ", "spaced out"),
        ("export A=1", "1"),
        ("A=#only a remark", ""),
        ("A=value # and a remark", "value"),
        ("A=no#remark", "no#remark"),
        ("A='single # quoted'  # remark", "single # quoted"),
        ('A="double \\"quoted\\"\\n\\$x"', 'double "quoted"\n$x'),
        (f"A={BACKTICK}in 'back' \"ticks\"{BACKTICK}", "in 'back' \"ticks\""),
        ("A='two\nlines'", "two\nlines"),
        ("A=crlf\r\nB=2\r\n", "crlf"),
        ("\ufeffA=with a byte order mark", "with a byte order mark"),
        ("A=first\nA=second", "second"),
        ("A=[not JSON, no matter", "[not JSON, no matter"),
        ("# A=0\n\n  # more\n```env\nA=fenced\n```", "fenced"),
        ("A=https://u:p@host/?a=b", "https://u:p@host/?a=b"),
    ],
)
def test_values(text: str, value: str) -> None:
    """Quotes, comments, export, line endings."""
    assert read(text)["A"].value == value


def test_json_needs_no_quotes() -> None:
    """A JSON value ends where its JSON ends; comments and settings after it are kept apart."""
    text = 'X=1\nMODELS=[\n  {"name": "a # b"},\n  {"name": "]"}\n] # remark\nY=2\nMCP_SERVERS=[]\n'
    settings = read(text)
    assert json_of(settings["MODELS"]) == [{"name": "a # b"}, {"name": "]"}]
    assert (settings["MODELS"].line, settings["Y"]) == (2, Setting("Y", "2", 6))
    assert settings["MCP_SERVERS"].value == "[]"


def test_list_items_have_line_numbers() -> None:
    """Also within quotes."""
    for text in ('MODELS=[{"a": 1},\n\n {"b":\n 2},{"c": 3}]', 'MODELS=\'[{"a": 1},\n\n {"b":\n 2},{"c": 3}]\''):
        assert items_of(read(text)["MODELS"]) == [(1, {"a": 1}), (3, {"b": 2}), (4, {"c": 3})]
    assert items_of(read("MODELS=[ ]")["MODELS"]) == []


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("A=1\nnonsense", 2, "NAME=value"),
        ("A=1\n1B=2", 2, "NAME=value"),
        ("A='never\nclosed", 1, "not closed"),
        ("A='x' y", 1, "after the value of A"),
        ('MODELS=[\n  {"name": "a"}\n  {"name": "b"}\n]', 3, "MODELS is not valid JSON"),
        ('MODELS=[\n  {"name": "a",}\n]', 2, "MODELS is not valid JSON"),
        ('MODELS=[\n  {"name": "a"}\nTASK_MODEL=a\n', 3, "MODELS is not valid JSON"),
        ("MODELS=[{'name': 'a'}]", 1, "MODELS is not valid JSON"),
        ("MODELS=[] []", 1, "after the value of MODELS"),
        ("MODELS=[", 1, "MODELS is not valid JSON"),
    ],
)
def test_invalid_lines_are_reported_by_number(text: str, line: int, says: str) -> None:
    with pytest.raises(EnvFileError, match=f"^line {line}: .*{says}"):
        read(text)


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("A=1\nMODELS='[\n{]'", 3, "MODELS is not valid JSON"),
        ("\nMODELS={}", 2, "not a list"),
        ("MODELS=true", 1, "not a list"),
    ],
)
def test_invalid_lists_are_reported_by_line(text: str, line: int, says: str) -> None:
    """JSON within quotes is parsed on use; its errors have line numbers too."""
    with pytest.raises(EnvFileError, match=f"^line {line}: .*{says}"):
        items_of(read(text)["MODELS"])


def test_messages_do_not_contain_the_invalid_line() -> None:
    """It may contain a key, and the message is logged."""
    for text in ("OPENAI_API_KEY: sk-secret", "OPENAI_API_KEY='sk' sk-secret", "OPENAI_API_KEY='sk-secret"):
        with pytest.raises(EnvFileError) as raised:
            read(text)
        assert "secret" not in str(raised.value)


AWKWARD = {
    "PLAIN": "plain",
    "EMPTY": "",
    "SINGLE": "it's",
    "BACKTICK": "back`tick",
    "DOUBLE": '"quoted"',
    "DOLLAR": "a$HOME and ${PATH} and $5",
    "ESCAPED": "\\$x",
    "BACKSLASH": "a\\b\\nc",
    "HASH": "a#b # c",
    "TWO_LINES": "two\nlines",
    "SPACES": " lead, trail ",
    "JSON": json_value([{"name": "it's $5 `x` \\ \" é\n\U0001f600"}]),
}


def test_python_dotenv_reads_the_written_file(tmp_path: Path) -> None:
    """Without the values that Node's dotenv reads differently: `$`, backticks, `\\\\`."""
    path = tmp_path / "env"
    values = {name: value for name, value in AWKWARD.items() if not {"$", "'"} & set(value) and "\\\\" not in value}
    path.write_text(render(values), encoding="utf-8")
    assert dotenv.dotenv_values(path, interpolate=False) == values


@pytest.mark.parametrize("value", ["'`", "ends in \\"])
def test_value_without_an_escape_is_rejected_by_name(value: str) -> None:
    with pytest.raises(ValueError, match="ODD"):
        render({"ODD": value})


def test_json_value_decodes_to_the_same_document() -> None:
    assert json.loads(AWKWARD["JSON"]) == [{"name": "it's $5 `x` \\ \" é\n\U0001f600"}]
    assert not set("'$\n") & set(AWKWARD["JSON"])


DOTENV_CLI = os.environ.get("DOTENV_CLI") or shutil.which("dotenv-cli")


@pytest.mark.skipif(DOTENV_CLI is None, reason="DOTENV_CLI does not name cli.js of npm's dotenv-cli")
def test_dotenv_cli_reads_the_written_file(tmp_path: Path) -> None:
    """Through both calls of dotenv-cli: ours and the one in Chat UI's image."""
    (tmp_path / "ours").write_text(render(AWKWARD), encoding="utf-8")
    (tmp_path / "image").write_text("PLAIN=other\nEMPTY=#remark\nONLY_THERE=1\n")
    (tmp_path / "image.local").touch()
    show = "console.log(JSON.stringify(process.env))"
    inner = ["node", str(DOTENV_CLI), "-e", "image", "-c", "--", "node", "-e", show]
    command = ["node", str(DOTENV_CLI), "--no-expand", "-e", "ours", "--", *inner]
    printed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    environment = json.loads(printed)
    assert {name: environment.get(name) for name in AWKWARD} == AWKWARD
    assert environment["ONLY_THERE"] == "1"
