"""Check that this container cannot reach the internet: TCP, UDP and DNS.

`python -m kit.tools.egress [--outside HOST:PORT ...]` writes a line per successful attempt and exits with 1, or one
line if all failed. It opens connections and sends one DNS query, nothing else.
"""

import argparse
import errno
import secrets
import socket
import struct
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeAlias

from kit.tools.check_result import Finding, report

FIX = "Start the service from docker-compose.gpu-cluster.yml, and keep its networks internal."

Address: TypeAlias = tuple[str, int]
Attempts: TypeAlias = dict[str, Callable[[], bool]]


@dataclass(frozen=True)
class Outside:
    """Destinations on the internet, and the timeout of an attempt in seconds."""

    # Anycast addresses of public DNS servers.
    addresses: Sequence[Address] = (("1.1.1.1", 443), ("2606:4700:4700::1111", 443))
    dns_server: Address = ("8.8.8.8", 53)
    name: str = "huggingface.co"
    timeout_s: float = 3.0


INTERNET = Outside()


def check_egress(outside: Outside = INTERNET) -> list[Finding]:
    """Make all attempts in parallel; return a problem for each that succeeded, or one ok."""
    attempts: Attempts = {
        f"TCP to {address[0]} port {address[1]}": partial(_can_connect, address, outside.timeout_s)
        for address in outside.addresses
    }
    attempts |= {
        f"UDP to the DNS server {outside.dns_server[0]}": partial(_can_query_dns, outside),
        f"resolving {outside.name}": partial(_can_resolve, outside.name),
    }
    succeeded = [name for name, success in _run_in_parallel(attempts, outside.timeout_s).items() if success]
    if not succeeded:
        return [Finding("ok", "egress", f"no egress: {', '.join(attempts)}")]
    return [Finding("problem", "egress", f"{name} succeeded", FIX) for name in succeeded]


def main(arguments: Sequence[str] | None = None, outside: Outside = INTERNET) -> None:
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
    report(check_egress(replace(outside, addresses=options.outside) if options.outside else outside))


def _address(text: str) -> Address:
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)


def _run_in_parallel(attempts: Attempts, timeout_s: float) -> dict[str, bool]:
    """Return the result of each attempt. One that does not return in time, such as a DNS query, has failed."""
    results = dict.fromkeys(attempts, False)

    def run(name: str) -> None:
        results[name] = attempts[name]()

    threads = [threading.Thread(target=run, args=(name,), daemon=True) for name in attempts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout_s + 2)
    return dict(results)


def _can_connect(address: Address, timeout_s: float) -> bool:
    try:
        socket.create_connection(address, timeout=timeout_s).close()
    except OSError as error:
        # The host was reached; only its port is closed.
        return error.errno == errno.ECONNREFUSED
    return True


def _can_query_dns(outside: Outside) -> bool:
    """Send a DNS query to an external server, bypassing the container's resolver."""
    question = b"".join(bytes([len(label)]) + label.encode() for label in outside.name.split("."))
    header = struct.pack(">HHHHHH", secrets.randbelow(1 << 16), 0x0100, 1, 0, 0, 0)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.settimeout(outside.timeout_s)
        try:
            udp.sendto(header + question + b"\0" + struct.pack(">HH", 1, 1), outside.dns_server)
            return bool(udp.recv(512))
        except OSError:
            return False


def _can_resolve(name: str) -> bool:
    try:
        return bool(socket.getaddrinfo(name, 443))
    except OSError:
        return False


if __name__ == "__main__":
    main()
