"""`python -m gateway`: serve the gateway with the settings of the environment."""

from gateway.app import SERVER_OPTIONS, create
from gateway.settings import GatewaySettings
from kit.server import run


def main() -> None:
    """Serve until SIGINT or SIGTERM."""
    run("gateway", GatewaySettings, create, **SERVER_OPTIONS)


if __name__ == "__main__":
    main()
