"""`python -m gateway`: run the gateway with the settings from the environment."""

import gc
import signal

import uvicorn

from gateway.app import SERVER_OPTIONS, create
from gateway.discovery.file_provider import ignore_sighup
from gateway.settings import GatewaySettings
from gateway.workers.accept_balancer import WorkerServer
from gateway.workers.shared_memory import CLOSED, SharedSlots
from gateway.workers.supervisor import Supervisor
from kit.web.server import (
    listen,
    make,
    prepare,
    raise_open_files_limit,
    refuse_arguments,
    serve,
    server_config,
)  # fmt: skip


def main() -> None:
    """Serve until SIGINT or SIGTERM, with WORKERS processes."""
    refuse_arguments("gateway")
    name, settings = prepare("gateway", GatewaySettings)
    reloads = settings.services_file is not None
    if reloads:
        ignore_sighup()
    # Validates the configuration too: with several workers, each creates its own application.
    app = make(name, lambda: create(settings))
    listener = listen(name, settings.host, settings.port)
    raise_open_files_limit()
    # Long-lived objects: exempt them from garbage collection, which would also copy their pages in every worker.
    gc.collect()
    gc.freeze()
    if settings.workers == 1:
        serve(uvicorn.Server(server_config(app, **SERVER_OPTIONS)), listener)
        return
    slots = SharedSlots(settings.workers)

    def work(worker: int) -> None:
        app = make(name, lambda: create(settings, slots, worker))
        serve(WorkerServer(server_config(app, **SERVER_OPTIONS), slots, worker), listener)

    forwarded = (signal.SIGHUP,) if reloads else ()
    Supervisor(settings.workers, work, lambda worker: slots.set_connections(worker, CLOSED), forwarded=forwarded).run()


if __name__ == "__main__":
    main()
