"""`python -m gateway`: serve the gateway with the settings of the environment."""

import gc
import signal

import uvicorn

from gateway.app import SERVER_OPTIONS, create
from gateway.discovery.sighup import bear_hangups
from gateway.settings import GatewaySettings
from gateway.workers.accept_balancer import WorkerServer
from gateway.workers.shared_memory import CLOSED, SharedSlots
from gateway.workers.supervisor import Workers
from kit.web.no_arguments import refuse_arguments
from kit.web.server import listen, make, prepare, raise_open_files_limit, serve, server_config


def main() -> None:
    """Serve until SIGINT or SIGTERM, with as many processes as WORKERS says."""
    refuse_arguments("gateway")
    name, settings = prepare("gateway", GatewaySettings)
    reloads = settings.services_file is not None
    if reloads:
        bear_hangups()
    # With several workers each makes its own; this one only finds out whether it can be made.
    app = make(name, lambda: create(settings))
    listener = listen(name, settings.host, settings.port)
    raise_open_files_limit()
    # What is there now stays for good: the garbage collector need not look at it again, nor copy it for every worker.
    gc.collect()
    gc.freeze()
    if settings.workers == 1:
        serve(uvicorn.Server(server_config(app, **SERVER_OPTIONS)), listener)
        return
    boards = SharedSlots(settings.workers)

    def work(worker: int) -> None:
        app = make(name, lambda: create(settings, boards, worker))
        serve(WorkerServer(server_config(app, **SERVER_OPTIONS), boards, worker), listener)

    told_on = (signal.SIGHUP,) if reloads else ()
    Workers(settings.workers, work, lambda worker: boards.set_connections(worker, CLOSED), told_on=told_on).run()


if __name__ == "__main__":
    main()
