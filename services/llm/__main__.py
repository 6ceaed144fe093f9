"""`python -m services.llm`: serve until SIGINT or SIGTERM. Settings come from the environment."""

from kit.web.no_arguments import refuse_arguments
from kit.web.server import listen, make, prepare, raise_open_files_limit, serve, server_config
from services.llm.app import create
from services.llm.graceful_stop import TELLING_S, InterruptingServer
from services.llm.settings import LlmSettings


def main() -> None:
    """Exits with 78 and one clear message on stderr when a setting is wrong or the port is taken."""
    refuse_arguments("services.llm")
    name, settings = prepare("llm", LlmSettings)
    app = make(name, lambda: create(settings))
    listener = listen(name, settings.host, settings.port)
    raise_open_files_limit()
    config = server_config(app, timeout_graceful_shutdown=settings.stop_grace + TELLING_S)
    serve(InterruptingServer(config, app.interrupt), listener)


if __name__ == "__main__":
    main()
