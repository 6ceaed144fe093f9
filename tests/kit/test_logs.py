"""Logs: one format for all loggers, JSON or console."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kit.logs import writes_json

ROOT = Path(__file__).resolve().parents[2]
SECRET = "a-local-variable"

PROGRAM = f"""
import logging, sys, warnings
import structlog
from kit.logs import configure_logs
log = structlog.get_logger("ours")   # before the configuration, as modules do
configure_logs("embedding", level=sys.argv[2], format=sys.argv[1])

def fail():
    prompt = "{SECRET}"
    raise ZeroDivisionError("divided")

log.info("hostile\\x1b[2Jmessage", path="/\\x1b]0;title\\x07", forged="a\\nb", both="a b\\x9b1m", turned="\\u202egpj")
logging.getLogger("theirs").warning("GET %s", "/\\x1bc\\r")
try:
    int("\\x1b[8m")
except ValueError as error:
    log.warning("hostile value", exc_info=error)
    logging.getLogger("theirs").warning("their hostile value", exc_info=error)
log.info("plain", number=1, none=None, path=__import__("pathlib").Path("/x"), text="ü \\n \\x1b[31m")
with structlog.contextvars.bound_contextvars(request_id="r1"):
    log.warning("inside a request")
    logging.getLogger("theirs").warning("from %s", "a library")
log.info("after the request")
log.debug("detail")
logging.getLogger("theirs.debug").debug("detail of a library")
logging.getLogger("uvicorn.error").info("Started")
logging.getLogger("uvicorn.access").info("an access line")
logging.getLogger("httpx2").info("HTTP Request: GET")
try:
    fail()
except ZeroDivisionError as error:
    log.error("ours failed", exc_info=error)
    logging.getLogger("theirs").exception("theirs failed")
warnings.warn("old API")
"""


def run(format: str, level: str = "INFO") -> str:
    done = subprocess.run(
        [sys.executable, "-W", "default", "-c", PROGRAM, format, level],
        cwd=ROOT,
        env={**os.environ, "NO_COLOR": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == ""  # all logs go to stderr
    return done.stderr


@pytest.fixture(scope="module")
def lines() -> dict[str, dict[str, Any]]:
    """What the program wrote as JSON, by event. Every line must be JSON."""
    parsed = [json.loads(line) for line in run("json").splitlines()]
    return {line["event"]: line for line in parsed}


def test_line_has_service_logger_level_and_time(lines: dict[str, dict[str, Any]]) -> None:
    """Values that are not JSON are written as text."""
    line = dict(lines["plain"])
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "plain",
        "level": "info",
        "logger": "ours",
        "service": "embedding",
        "number": 1,
        "none": None,
        "path": "PosixPath('/x')",
        "text": "ü \n \x1b[31m",
    }
    assert all({"event", "level", "logger", "service", "timestamp"} <= set(each) for each in lines.values())


def test_library_records_have_the_same_format(lines: dict[str, dict[str, Any]]) -> None:
    line = dict(lines["from a library"])
    del line["timestamp"]
    assert line == {
        "event": "from a library",
        "level": "warning",
        "logger": "theirs",
        "service": "embedding",
        "request_id": "r1",
    }


def test_request_id_is_on_the_lines_of_its_request_only(lines: dict[str, dict[str, Any]]) -> None:
    assert lines["inside a request"]["request_id"] == "r1"
    assert "request_id" not in lines["after the request"]


def test_access_and_client_lines_of_libraries_are_dropped(lines: dict[str, dict[str, Any]]) -> None:
    """kit.web.middleware writes the access log."""
    assert "Started" in lines
    assert not {"an access line", "HTTP Request: GET", "detail", "detail of a library"} & set(lines)


@pytest.mark.parametrize("event", ["ours failed", "theirs failed"])
def test_traceback_is_a_field(lines: dict[str, dict[str, Any]], event: str) -> None:
    """It shows no variable values."""
    line = lines[event]
    assert line["level"] == "error"
    assert line["exception"].startswith("Traceback")
    assert line["exception"].endswith("ZeroDivisionError: divided")
    assert SECRET not in str(line)


def test_python_warnings_are_log_lines(lines: dict[str, dict[str, Any]]) -> None:
    (line,) = [line for event, line in lines.items() if "old API" in event]
    assert (line["level"], line["logger"]) == ("warning", "py.warnings")


def test_console_format() -> None:
    """Same content as text; the traceback shows no variable values."""
    text = run("console")
    assert "inside a request" in text
    assert "request_id" in text
    assert "ZeroDivisionError: divided" in text
    assert SECRET not in text
    with pytest.raises(json.JSONDecodeError):
        json.loads(text.splitlines()[0])


def test_console_format_escapes_control_characters() -> None:
    """A client's text cannot change the terminal or forge a line, whichever logger writes it; colours are off here."""
    text = run("console")
    lines = text.splitlines()
    assert [char for line in lines for char in line if not char.isprintable()] == []
    hostile = next(line for line in lines if "hostile\\x1b[2Jmessage" in line)
    assert "path=/\\x1b]0;title\\x07" in hostile
    assert "forged=a\\nb" in hostile
    assert "\\x9b1m" in hostile
    assert "turned=\\u202egpj" in hostile
    assert any("GET /\\x1bc\\r" in line for line in lines)
    assert sum(line.startswith("ValueError: invalid literal") for line in lines) == 2


def test_level_applies_to_all_loggers() -> None:
    debug = run("json", "debug")
    assert "detail of a library" in debug
    assert '"detail"' in debug
    error = run("json", "Error")
    assert [json.loads(line)["event"] for line in error.splitlines()] == ["ours failed", "theirs failed"]


@pytest.mark.parametrize(("format", "expected"), [("json", True), ("console", False), ("auto", True)])
def test_auto_is_json_off_a_terminal(format: Any, expected: bool) -> None:
    assert writes_json(format) is expected
