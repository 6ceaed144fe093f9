"""Structured logs: JSON, or text with colour on a terminal; every line carries its request id.

Records of the standard library's loggers (uvicorn, engines) and warnings use the same renderer.
"""

import io
import logging
import logging.config
import re
import sys
from collections.abc import MutableMapping
from typing import Any, Literal, TextIO

import structlog

LogFormat = Literal["auto", "json", "console"]

# Control characters, with which a client's text could move the cursor, change a terminal or forge a line, and those
# that separate lines or reverse the direction of text.
_CONTROLS = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def configure_logs(service: str, *, level: str = "INFO", format: LogFormat = "auto") -> None:
    """Configure logging to stderr. Call once, at start.

    `service` is added to every line. `auto` is `console` on a terminal and `json` otherwise.
    """
    as_json = writes_json(format)
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    if as_json:
        shared.append(structlog.processors.format_exc_info)
        renderers: list[Any] = [structlog.processors.JSONRenderer()]
    else:
        # Plain tracebacks: the rich ones print local variables, and with them keys and prompts.
        console = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=_write_traceback)
        renderers = [_escape_controls, console]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )

    def add_service(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        event.setdefault("service", service)
        return event

    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, add_service, *renderers],
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    logging.captureWarnings(True)
    for name in ("uvicorn", "uvicorn.error"):
        logging.getLogger(name).handlers = []
        logging.getLogger(name).propagate = True
    # kit.web.middleware writes the access log; lines for outgoing HTTP requests are noise.
    for name in ("uvicorn.access", "httpx", "httpx2", "httpcore", "httpcore2"):
        logging.getLogger(name).setLevel(logging.WARNING)


def escaped(text: str) -> str:
    """Return one line of text for a terminal: control characters as in Python's literals, `\\x1b`."""
    return _CONTROLS.sub(lambda found: ascii(found[0])[1:-1], text)


def _escape_controls(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Escape the text of an event; the renderer escapes values of other types. Messages may have several lines."""
    for name, value in event.items():
        if isinstance(value, str):
            event[name] = _escaped_lines(value) if name in ("event", "stack") else escaped(value)
    return event


def _escaped_lines(text: str) -> str:
    return "\n".join(map(escaped, text.split("\n")))


def _write_traceback(stream: TextIO, exc_info: Any) -> None:
    """Write a traceback, whose last line may be a client's text."""
    text = io.StringIO()
    structlog.dev.plain_traceback(text, exc_info)
    stream.write(_escaped_lines(text.getvalue()))


def writes_json(format: LogFormat) -> bool:
    """Whether `format` means JSON lines in this process."""
    return format == "json" or (format == "auto" and not sys.stderr.isatty())
