"""Check that this container cannot reach the internet: TCP, UDP and DNS.

`python -m kit.tools.egress [--outside HOST:PORT ...]` writes a line per successful attempt and exits with 1, or one
line if all failed. It opens connections and sends one DNS query, nothing else.
"""

import argparse
import errno
import secrets
import socket
import struct
import sys
import threading
from collections.abc import Callable, Sequence
from typing import TypeAlias

from kit.tools.check_result import Finding

TIMEOUT_S = 3.0
OUTSIDE_NAME = "huggingface.co"
# Anycast addresses of public DNS servers.
OUTSIDE_V4 = ("1.1.1.1", 443)
OUTSIDE_V6 = ("2606:4700:4700::1111", 443)
OUTSIDE_DNS = ("8.8.8.8", 53)
FIX = "Start the service from docker-compose.gpu-cluster.yml, and keep its networks internal."

Attempts: TypeAlias = dict[str, Callable[[], bool]]


def check_egress(addresses: Sequence[tuple[str, int]] = (OUTSIDE_V4, OUTSIDE_V6)) -> list[Finding]:
    """Make all attempts in parallel; return a problem for each that succeeded, or one ok."""
    attempts: Attempts = {f"TCP to {host} port {port}": _tcp(host, port) for host, port in addresses}
    attempts[f"UDP to the DNS server {OUTSIDE_DNS[0]}"] = _can_query_dns
    attempts[f"resolving {OUTSIDE_NAME}"] = _can_resolve
    succeeded = [name for name, success in _run_in_parallel(attempts).items() if success]
    if not succeeded:
        return [Finding("ok", "egress", f"no egress: {', '.join(attempts)}")]
    return [Finding("problem", "egress", f"{name} succeeded", FIX) for name in succeeded]


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the findings; exits with 1 if an attempt succeeded."""
    parser = argparse.ArgumentParser(prog="python -m kit.tools.egress", description=__doc__)
    parser.add_argument(
        "--outside",
        action="append",
        type=_address,
        metavar="HOST:PORT",
        help="connect to this address instead of the default ones",
    )
    options = parser.parse_args(arguments)
    findings = check_egress(options.outside or (OUTSIDE_V4, OUTSIDE_V6))
    for finding in findings:
        finding.write(sys.stdout)
    raise SystemExit(any(finding.status == "problem" for finding in findings))


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)


def _run_in_parallel(attempts: Attempts) -> dict[str, bool]:
    """Return the result of each attempt. One that does not return in time, such as a DNS query, has failed."""
    results = dict.fromkeys(attempts, False)

    def run(name: str) -> None:
        results[name] = attempts[name]()

    threads = [threading.Thread(target=run, args=(name,), daemon=True) for name in attempts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT_S + 2)
    return dict(results)


def _tcp(host: str, port: int) -> Callable[[], bool]:
    def connects() -> bool:
        try:
            socket.create_connection((host, port), timeout=TIMEOUT_S).close()
        except OSError as error:
            # The host was reached; only its port is closed.
            return error.errno == errno.ECONNREFUSED
        return True

    return connects


def _can_query_dns() -> bool:
    """Send a DNS query to an external server, bypassing the container's resolver."""
    question = b"".join(bytes([len(label)]) + label.encode() for label in OUTSIDE_NAME.split("."))
    header = struct.pack(">HHHHHH", secrets.randbelow(1 << 16), 0x0100, 1, 0, 0, 0)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.settimeout(TIMEOUT_S)
        try:
            udp.sendto(header + question + b"\0" + struct.pack(">HH", 1, 1), OUTSIDE_DNS)
            return bool(udp.recv(512))
        except OSError:
            return False


def _can_resolve() -> bool:
    try:
        return bool(socket.getaddrinfo(OUTSIDE_NAME, 443))
    except OSError:
        return False


if __name__ == "__main__":
    main()
