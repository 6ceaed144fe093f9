"""`python -m edge`: block egress, then exec HAProxy. Standard library only.

HAProxy, in TCP mode, forwards each published port to the service that listens on the same port inside. Before that, the
rules of `edge.firewall` are loaded into the container's network namespace. NET_ADMIN is a file capability of the `nft`
binary only; no_new_privs then keeps every process of the container from gaining it.
"""

import ctypes
import os
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

from edge import EdgeError
from edge.firewall import find_front, rules
from edge.proxy import configuration, parse_routes

EXIT_CONFIG = 78  # EX_CONFIG of sysexits.h
CONFIGURATION = Path("/tmp/haproxy.cfg")  # noqa: S108  # a tmpfs of this container, which has one process
NFT = "/usr/sbin/nft"
HAPROXY = "/usr/sbin/haproxy"
PR_SET_NO_NEW_PRIVS = 38  # linux/prctl.h


def main() -> None:
    """Read ROUTES, load the firewall rules, exec HAProxy. Exits with 78 and a one-line message on failure."""
    try:
        routes = parse_routes(os.environ.get("ROUTES", ""))
        interface, address = find_front(Path("/proc/net/route").read_text(encoding="ascii"))
    except EdgeError as error:
        fail(str(error))
    command = [NFT, "-f", "-"]
    loaded = subprocess.run(command, input=rules(interface), capture_output=True, text=True, check=False)  # noqa: S603  # fixed
    if loaded.returncode:
        fail(f"nft failed to load the firewall rules: {loaded.stderr.strip()}. It needs cap_add: [NET_ADMIN].")
    CONFIGURATION.write_text(configuration(routes, address), encoding="utf-8")
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        fail(f"prctl failed: {os.strerror(ctypes.get_errno())}.")
    ports = ", ".join(f"{route.port} to {route.host}" for route in routes)
    sys.stderr.write(f"edge: forwarding {ports}; egress is blocked\n")
    os.execv(HAPROXY, [HAPROXY, "-db", "-f", str(CONFIGURATION)])  # noqa: S606  # HAProxy replaces this process


def fail(message: str) -> NoReturn:
    """Print the message and exit with EX_CONFIG."""
    sys.stderr.write(f"edge: {message}\n")
    raise SystemExit(EXIT_CONFIG)


if __name__ == "__main__":
    main()
