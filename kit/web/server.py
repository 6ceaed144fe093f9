"""Running an application: uvicorn with our defaults, and start-up failures told in one line."""

import contextlib
import errno
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

A = TypeVar("A", bound=ASGIApp)
H = TypeVar("H", bound=HttpSettings)

EXIT_CONFIG = 78  # EX_CONFIG of sysexits.h: a supervisor should not try again
GRACEFUL_SHUTDOWN_S = 30
BACKLOG = 2048  # uvicorn's own
FIRST_FREE_PORT = 1024


def run(name: str, settings_class: type[H], create: Callable[[H], ASGIApp], **uvicorn_options: Any) -> None:
    """Load the settings, make the application, serve it until SIGINT or SIGTERM.

    Exits with 78 and one clear message on stderr when a setting is wrong or the port is taken. After SIGINT it returns,
    after SIGTERM the process ends by that signal, both when every request has been answered or given up.
    """
    name, settings = prepare(name, settings_class)
    app = make(name, lambda: create(settings))
    listener = listen(name, settings.host, settings.port)
    take_all_files()
    serve(uvicorn.Server(server_config(app, **uvicorn_options)), listener)


def prepare(name: str, settings_class: type[H]) -> tuple[str, H]:
    """Load the settings and set up the logs; exits with a message when that fails.

    Returns the name that logs and messages call this process by, and the settings.
    """
    try:
        settings = load_settings(settings_class)
        name = settings.shown_as(name)
        configure_logs(name, level=settings.log_level, format=settings.log_format)
    except SettingsError as error:
        fail(f"{name}: {error}")
    return name, settings


def make(name: str, create: Callable[[], A]) -> A:
    """Make the application; exits with a message when it finds something wrong in its settings."""
    try:
        return create()
    except SettingsError as error:
        fail(f"{name}: {error}")


def server_config(app: ASGIApp, **uvicorn_options: Any) -> uvicorn.Config:
    """uvicorn's configuration with our defaults."""
    options: dict[str, Any] = {
        "log_config": None,
        "access_log": False,
        "server_header": False,
        "timeout_graceful_shutdown": GRACEFUL_SHUTDOWN_S,
        # Left out, uvicorn reads FORWARDED_ALLOW_IPS; with `*` there, any client could claim to be on loopback.
        "forwarded_allow_ips": ["127.0.0.1", "::1"],
        **uvicorn_options,
    }
    return uvicorn.Config(app, **options)


def serve(server: uvicorn.Server, listener: socket.socket) -> None:
    """Serve until SIGINT or SIGTERM."""
    with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises the signal again once it has shut down
        server.run(sockets=[listener])


def take_all_files() -> None:
    """Raise the limit of open files to the most that this process may have.

    Each connection is a file, and what a service manager or Docker gives at first is often 1024.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        # macOS says "no limit" and then takes no more than this.
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard if hard != resource.RLIM_INFINITY else 10_240, hard))


def listen(name: str, host: str, port: int) -> socket.socket:
    """Return a socket that listens on `host:port`; exits with a message when it cannot be had.

    It listens at once: until one of two sockets does, both may be bound to the same port.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except (OSError, TypeError) as error:  # TypeError: a host that cannot be a name at all
        listener.close()
        if isinstance(error, PermissionError) and port < FIRST_FREE_PORT:
            fail(f"{name}: port {port} needs a privilege that this user does not have. Set PORT to 1024 or above.")
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            fail(f"{name}: port {port} on {host} is taken. Stop what listens there, or set PORT to another.")
        reason = error.strerror if isinstance(error, OSError) else "no such host name"
        fail(f"{name}: cannot listen on {host}:{port}: {reason}. Check HOST and PORT.")
    listener.setblocking(False)
    return listener


def fail(message: str) -> NoReturn:
    """Print `message` to stderr and exit with EX_CONFIG."""
    sys.stderr.write(message + "\n")
    raise SystemExit(EXIT_CONFIG)
