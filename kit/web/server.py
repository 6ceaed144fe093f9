"""Run an application under uvicorn with our defaults; start-up failures are one line on stderr."""

import contextlib
import errno
import os
import resource
import socket
import sys
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

import uvicorn
from starlette.types import ASGIApp

from kit.config.settings import SettingsError, load_settings
from kit.logs import configure_logs
from kit.web.app import HttpSettings
from kit.web.client_connection import ClientConnection

A = TypeVar("A", bound=ASGIApp)
H = TypeVar("H", bound=HttpSettings)

EXIT_CONFIG = 78  # EX_CONFIG of sysexits.h: a supervisor should not restart the program
GRACEFUL_SHUTDOWN_S = 30
BACKLOG = 2048  # uvicorn's own
FIRST_FREE_PORT = 1024

HELP = """usage: python -m {program}

Serves until SIGINT or SIGTERM. There are no arguments: each setting is an environment variable with its field's name in
capitals (PORT=8000). {folder}/settings.py documents them; kit/web/app.py and kit/service/service.py document those
that programs share. README.md has examples; .env.example lists the variables of the compose files.
"""


def refuse_arguments(program: str) -> None:
    """Exit with 0 after `--help`, with 64 (EX_USAGE) after any other argument; return if there is none.

    `program` is the module's name for `python -m`.
    """
    if len(sys.argv) < 2:
        return
    if sys.argv[1] in ("--help", "-h"):
        sys.stdout.write(HELP.format(program=program, folder=program.replace(".", "/")))
        raise SystemExit(0)
    sys.stderr.write(
        f"python -m {program}: unexpected argument {sys.argv[1][:100]!r}: settings come from the environment. "
        f"See python -m {program} --help\n"
    )
    raise SystemExit(os.EX_USAGE)


def run(name: str, settings_class: type[H], create: Callable[[H], ASGIApp], **uvicorn_options: Any) -> None:
    """Load the settings, create the application, serve it until SIGINT or SIGTERM.

    Exits with 78 and a message on stderr if a setting is invalid or the port is in use. Both signals let requests
    finish; after SIGINT it returns, after SIGTERM the process ends by that signal.
    """
    name, settings = prepare(name, settings_class)
    app = make(name, lambda: create(settings))
    listener = listen(name, settings.host, settings.port)
    raise_open_files_limit()
    serve(uvicorn.Server(server_config(app, **uvicorn_options)), listener)


def prepare(name: str, settings_class: type[H]) -> tuple[str, H]:
    """Load the settings and configure the logs; exits with a message on failure.

    Returns the process's name in logs and messages, and the settings.
    """
    try:
        settings = load_settings(settings_class)
        name = settings.shown_as(name)
        configure_logs(name, level=settings.log_level, format=settings.log_format)
    except SettingsError as error:
        fail(f"{name}: {error}")
    return name, settings


def make(name: str, create: Callable[[], A]) -> A:
    """Create the application; exits with a message on a SettingsError."""
    try:
        return create()
    except SettingsError as error:
        fail(f"{name}: {error}")


def server_config(app: ASGIApp, **uvicorn_options: Any) -> uvicorn.Config:
    """Return uvicorn's configuration with our defaults."""
    options: dict[str, Any] = {
        "log_config": None,
        "access_log": False,
        "server_header": False,
        "http": ClientConnection,
        "ws": "none",  # no route has WebSockets: the request is read as plain HTTP
        "timeout_graceful_shutdown": GRACEFUL_SHUTDOWN_S,
        # By default uvicorn reads FORWARDED_ALLOW_IPS; with `*` any client could pretend a loopback address.
        "forwarded_allow_ips": ["127.0.0.1", "::1"],
        **uvicorn_options,
    }
    return uvicorn.Config(app, **options)


def serve(server: uvicorn.Server, listener: socket.socket) -> None:
    """Serve until SIGINT or SIGTERM."""
    with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises the signal again once it has shut down
        server.run(sockets=[listener])


def raise_open_files_limit() -> None:
    """Raise the soft limit of open files to the hard limit.

    Each connection is a file, and the default soft limit is often 1024.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        # macOS reports "no limit" but accepts at most this.
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard if hard != resource.RLIM_INFINITY else 10_240, hard))


def listen(name: str, host: str, port: int) -> socket.socket:
    """Return a socket that listens on `host:port`; exits with a message on failure.

    listen() follows bind() at once: two sockets may be bound to one port as long as neither listens.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except (OSError, TypeError) as error:  # TypeError: an invalid host name
        listener.close()
        if isinstance(error, PermissionError) and port < FIRST_FREE_PORT:
            fail(f"{name}: port {port} needs root privileges. Set PORT to 1024 or above.")
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            fail(f"{name}: port {port} on {host} is in use. Stop that program, or set PORT to another port.")
        reason = error.strerror if isinstance(error, OSError) else "no such host name"
        fail(f"{name}: cannot listen on {host}:{port}: {reason}. Check HOST and PORT.")
    listener.setblocking(False)
    return listener


def fail(message: str) -> NoReturn:
    """Print `message` to stderr and exit with EX_CONFIG."""
    sys.stderr.write(message + "\n")
    raise SystemExit(EXIT_CONFIG)
