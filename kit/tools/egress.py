"""Ways out of this container's network, tried one after the other: what gets out on a machine without internet?

`python -m kit.tools.egress [--outside HOST:PORT ...]` writes a line per way that got out and exits with 1, or one
line that there is none. Only a look: it sends a name server's question and opens connections, nothing else.
"""

import argparse
import errno
import secrets
import socket
import struct
import sys
import threading
from collections.abc import Callable, Sequence

from kit.tools.check_result import Finding

WAIT_S = 3.0
OUTSIDE_NAME = "huggingface.co"
# Anycast addresses of public name servers that answer on 443 and on 53, over both protocols.
OUTSIDE_V4 = ("1.1.1.1", 443)
OUTSIDE_V6 = ("2606:4700:4700::1111", 443)
OUTSIDE_DNS = ("8.8.8.8", 53)
MEND = "Start it from docker-compose.gpu-cluster.yml, whose network is internal, and change no network there."


def look_outside(addresses: Sequence[tuple[str, int]] = (OUTSIDE_V4, OUTSIDE_V6)) -> list[Finding]:
    """Try every way at once; a finding for each that got out, or one that none did."""
    ways: dict[str, Callable[[], bool]] = {f"TCP to {host} port {port}": _tcp(host, port) for host, port in addresses}
    ways[f"UDP to the name server {OUTSIDE_DNS[0]}"] = _udp_answers
    ways[f"the name {OUTSIDE_NAME}"] = _name_resolves
    got_out = [way for way, out in _together(ways).items() if out]
    if not got_out:
        return [Finding("ok", "egress", f"no way out by {', '.join(ways)}")]
    return [Finding("problem", "egress", f"{way} got out", MEND) for way in got_out]


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the findings; exits with 1 when something got out."""
    parser = argparse.ArgumentParser(prog="python -m kit.tools.egress", description=__doc__)
    parser.add_argument(
        "--outside", action="append", type=_address, metavar="HOST:PORT", help="an address to try in place of our own"
    )
    options = parser.parse_args(arguments)
    findings = look_outside(options.outside or (OUTSIDE_V4, OUTSIDE_V6))
    for finding in findings:
        finding.write(sys.stdout)
    raise SystemExit(any(finding.status == "problem" for finding in findings))


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)


def _together(ways: dict[str, Callable[[], bool]]) -> dict[str, bool]:
    """Whether each got out. A name server that keeps silent may hold its thread longer than anybody waits: not out."""
    got_out = dict.fromkeys(ways, False)

    def attempt(way: str) -> None:
        got_out[way] = ways[way]()

    threads = [threading.Thread(target=attempt, args=(way,), daemon=True) for way in ways]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S + 2)
    return dict(got_out)


def _tcp(host: str, port: int) -> Callable[[], bool]:
    def connects() -> bool:
        try:
            socket.create_connection((host, port), timeout=WAIT_S).close()
        except OSError as error:
            # A refusal came from outside: the way there is open, only the door was shut.
            return error.errno == errno.ECONNREFUSED
        return True

    return connects


def _udp_answers() -> bool:
    """Ask a name server outside directly, past the resolver of this container."""
    question = b"".join(bytes([len(label)]) + label.encode() for label in OUTSIDE_NAME.split("."))
    header = struct.pack(">HHHHHH", secrets.randbelow(1 << 16), 0x0100, 1, 0, 0, 0)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.settimeout(WAIT_S)
        try:
            asking.sendto(header + question + b"\0" + struct.pack(">HH", 1, 1), OUTSIDE_DNS)
            return bool(asking.recv(512))
        except OSError:
            return False


def _name_resolves() -> bool:
    try:
        return bool(socket.getaddrinfo(OUTSIDE_NAME, 443))
    except OSError:
        return False


if __name__ == "__main__":
    main()
