"""`python -m services.llm`: serve until SIGINT or SIGTERM. Settings come from the environment."""

from kit.web.server import (
    listen,
    make,
    prepare,
    raise_open_files_limit,
    refuse_arguments,
    serve,
    server_config,
)  # fmt: skip
from services.llm.app import create
from services.llm.graceful_stop import NOTIFY_S, InterruptingServer
from services.llm.settings import LlmSettings


def main() -> None:
    """Run the service. Exits with 78 and a message on stderr if a setting is invalid or the port is in use."""
    refuse_arguments("services.llm")
    name, settings = prepare("llm", LlmSettings)
    app = make(name, lambda: create(settings))
    listener = listen(name, settings.host, settings.port)
    raise_open_files_limit()
    config = server_config(app, timeout_graceful_shutdown=settings.stop_grace + NOTIFY_S)
    serve(InterruptingServer(config, app.interrupt), listener)


if __name__ == "__main__":
    main()
