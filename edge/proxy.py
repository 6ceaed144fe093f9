"""HAProxy's configuration. Pure."""

import re
from dataclasses import dataclass

from edge import EdgeError

_ROUTE = re.compile(r"^(?P<host>[a-z0-9][a-z0-9-]{0,62}):(?P<port>\d{2,5})$")
# HAProxy's own `GET /health`, for the container's health check.
HEALTH_PORT = 8404

# In TCP mode these are idle timeouts; the services behind have their own, shorter ones.
_HEAD = """\
global
  log stdout format raw local0 notice
  hard-stop-after 30s

defaults
  mode tcp
  log global
  timeout connect 5s
  timeout client 1h
  timeout server 1h
  default-server init-addr none resolvers docker resolve-prefer ipv4

# Docker's DNS server: addresses change when containers are recreated.
resolvers docker
  nameserver dns 127.0.0.11:53
  accepted_payload_size 8192
  hold valid 1s
  hold nx 1s
  hold other 10s
  resolve_retries 3
  timeout resolve 1s
  timeout retry 1s

frontend health
  mode http
  bind 127.0.0.1:{health_port}
  timeout client 5s
  http-request return status 200 content-type application/json string '{{"status": "healthy", "service": "edge"}}'
"""

_LISTEN = """
listen {host}-{port}
  bind {address}:{port}
  server {host} {host}:{port}
"""


@dataclass(frozen=True)
class Route:
    """A published port, and the service that listens on the same port inside."""

    host: str
    port: int


def parse_routes(text: str) -> tuple[Route, ...]:
    """Parse ROUTES, such as `gateway:8080 registry:8090`. Raises EdgeError."""
    matches = [(word, _ROUTE.match(word)) for word in text.split()]
    if not matches:
        raise EdgeError("ROUTES is empty. Set HOST:PORT pairs, such as 'gateway:8080 registry:8090'.")
    routes = []
    for word, match in matches:
        if match is None or int(match["port"]) > 65535:
            raise EdgeError(f"ROUTES: {word!r} is not HOST:PORT, such as gateway:8080.")
        routes.append(Route(match["host"], int(match["port"])))
    ports = [route.port for route in routes]
    if len(set(ports)) < len(ports):
        raise EdgeError("ROUTES: duplicate port.")
    return tuple(routes)


def configuration(routes: tuple[Route, ...], address: str) -> str:
    """Return the configuration for `routes`, listening on `address` only."""
    sections = [_LISTEN.format(host=route.host, port=route.port, address=address) for route in routes]
    return _HEAD.format(health_port=HEALTH_PORT) + "".join(sections)
