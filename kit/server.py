"""Running an application: uvicorn with our defaults, and start-up failures told in one line."""

import errno
import socket
import sys
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

import uvicorn
from starlette.types import ASGIApp

from kit.app import HttpSettings
from kit.logs import configure_logs
from kit.settings import SettingsError, load_settings

H = TypeVar("H", bound=HttpSettings)

EXIT_CONFIG = 78  # EX_CONFIG of sysexits.h: a supervisor should not try again
GRACEFUL_SHUTDOWN_S = 30


def run(name: str, settings_class: type[H], create: Callable[[H], ASGIApp], **uvicorn_options: Any) -> None:
    """Load the settings, make the application, serve it until SIGINT or SIGTERM.

    Exits with 78 and one clear message on stderr when a setting is wrong or the port is taken.
    """
    try:
        settings = load_settings(settings_class)
        configure_logs(name, level=settings.log_level, format=settings.log_format)
        app = create(settings)
    except SettingsError as error:
        fail(f"{name}: {error}")
    listener = listen(name, settings.host, settings.port)
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=GRACEFUL_SHUTDOWN_S,
        **uvicorn_options,
    )
    uvicorn.Server(config).run(sockets=[listener])


def listen(name: str, host: str, port: int) -> socket.socket:
    """Return a socket bound to `host:port`; exits with a message when it cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            fail(f"{name}: port {port} on {host} is taken. Stop what listens there, or set PORT to another.")
        fail(f"{name}: cannot listen on {host}:{port}: {error.strerror}. Check HOST and PORT.")
    listener.setblocking(False)
    return listener


def fail(message: str) -> NoReturn:
    """Print `message` to stderr and exit with EX_CONFIG."""
    sys.stderr.write(message + "\n")
    raise SystemExit(EXIT_CONFIG)
