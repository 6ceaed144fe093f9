"""`python -m edge`: shut the way out, then become HAProxy. Standard library only.

HAProxy (TCP, no HTTP of its own) passes each published port on to the service of the same number inside. This program
starts it, and before that gives this container's kernel the rules of `edge.firewall`. For that it needs NET_ADMIN in
its own network namespace, which only the `nft` binary carries; after this no process of the container can gain it.
"""

import ctypes
import os
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

from edge.firewall import rules
from edge.interfaces import NoFront, find_front
from edge.proxy import BadRoute, configuration, parse_routes

EXIT_CONFIG = 78  # EX_CONFIG of sysexits.h
CONFIGURATION = Path("/tmp/haproxy.cfg")  # noqa: S108  # a tmpfs of this container, which has one process
NFT = "/usr/sbin/nft"
HAPROXY = "/usr/sbin/haproxy"
PR_SET_NO_NEW_PRIVS = 38  # linux/prctl.h


def main() -> None:
    """Read ROUTES, shut the way out, become HAProxy. Exits with 78 and one line when that is not possible."""
    try:
        routes = parse_routes(os.environ.get("ROUTES", ""))
        front = find_front(Path("/proc/net/route").read_text(encoding="ascii"))
    except (BadRoute, NoFront) as error:
        fail(str(error))
    command = [NFT, "-f", "-"]
    shut = subprocess.run(command, input=rules(front.name), capture_output=True, text=True, check=False)  # noqa: S603  # fixed
    if shut.returncode:
        fail(f"The way out could not be shut: {shut.stderr.strip()}. This container needs cap_add: [NET_ADMIN].")
    CONFIGURATION.write_text(configuration(routes, front.address), encoding="utf-8")
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        fail(f"prctl failed: {os.strerror(ctypes.get_errno())}.")
    ports = ", ".join(f"{route.port} to {route.host}" for route in routes)
    sys.stderr.write(f"edge: passing {ports}; nothing goes out\n")
    os.execv(HAPROXY, [HAPROXY, "-db", "-f", str(CONFIGURATION)])  # noqa: S606  # the point: this process is HAProxy now


def fail(message: str) -> NoReturn:
    """Print the message and exit with EX_CONFIG."""
    sys.stderr.write(f"edge: {message}\n")
    raise SystemExit(EXIT_CONFIG)


if __name__ == "__main__":
    main()
