"""A network namespace in place of the internet, which records every packet that reaches it.

Its addresses are reserved for documentation (RFC 5737, RFC 3849). This machine forwards to it as to the internet, so
that every packet that leaves a container arrives here.
"""

import contextlib
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

NAMESPACE = "gpu-cluster-out"
ADDRESS, ADDRESS6 = "203.0.113.9", "2001:db8::9"
_LINK, _PEER = "gco0", "gco1"
RESOLV_CONF = Path("/etc/resolv.conf")

# Run by this machine's Python in the network namespace of a container. Prints the attempts that succeeded.
PROBE = f"""
import socket, struct, sys
name = sys.argv[1]
def tried(what, call):
    try:
        call()
        print(what, flush=True)
    except OSError:
        pass
def tcp(address):
    try:
        socket.create_connection((address, 80), 1.5).close()
    except ConnectionRefusedError:
        pass  # the packet has left the container
def udp(address, family):
    with socket.socket(family, socket.SOCK_DGRAM) as s:
        s.sendto(name.encode(), (address, 53))
def dns(server):
    labels = b"".join(bytes([len(part)]) + part.encode() for part in (name + ".example.org").split("."))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.settimeout(3)
        s.sendto(struct.pack(">6H", 7, 0x100, 1, 0, 0, 0) + labels + bytes(1) + struct.pack(">2H", 1, 1), (server, 53))
        response = s.recv(512)
        if response[3] & 15 or struct.unpack(">H", response[6:8])[0] == 0:
            raise OSError("no such name")
tried("tcp", lambda: tcp("{ADDRESS}"))
tried("udp", lambda: udp("{ADDRESS}", socket.AF_INET))
tried("tcp6", lambda: tcp("{ADDRESS6}"))
tried("udp6", lambda: udp("{ADDRESS6}", socket.AF_INET6))
tried("dns", lambda: dns("127.0.0.11"))
"""

# IPv4 except the namespace's own, and IPv6 except ICMPv6 (58: neighbour discovery) and hop-by-hop (0).
SNIFFER = f"""
import socket
with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as packets:
    print("listening")
    while True:
        frame = packets.recv(2048)
        if frame[12:14] == bytes((8, 0)) and frame[26:30] != socket.inet_aton("{ADDRESS}"):
            print("ipv4", socket.inet_ntoa(frame[26:30]), "protocol", frame[23])
        elif frame[12:14] == bytes((0x86, 0xDD)) and frame[20] not in (0, 58):
            print("ipv6", socket.inet_ntop(socket.AF_INET6, frame[22:38]), "protocol", frame[20])
"""


class Outside:
    """Packets and DNS queries that arrived outside."""

    def __init__(self) -> None:
        self.packets: list[str] = []
        self.names: list[str] = []

    def reset(self) -> None:
        """Clear the records."""
        self.packets.clear()
        self.names.clear()


def probe(pid: int, name: str) -> set[str]:
    """Try every protocol from the network namespace of process `pid`; return those that succeeded."""
    command = ["nsenter", "--target", str(pid), "--net", sys.executable, "-I", "-c", PROBE, name]
    return set(subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.split())


@contextlib.contextmanager
def watched() -> Iterator[Outside]:
    """Create the namespace, and record packets until the end of the block."""
    outside = Outside()
    remove()
    _create()
    with contextlib.ExitStack() as closing:
        closing.callback(remove)
        sniffer = closing.enter_context(_sniffer())
        _start(_record, sniffer, outside.packets)
        yield outside


@contextlib.contextmanager
def resolver_on_loopback(outside: Outside) -> Iterator[None]:
    """Use a recording DNS server on 127.0.0.1 for containers that start within the block.

    If the host's resolver is on loopback, Docker forwards DNS queries of containers to it from the host's network.
    """
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind(("127.0.0.1", 53))
    _start(_serve_dns, server, outside.names)
    before = RESOLV_CONF.read_bytes()
    RESOLV_CONF.write_text("nameserver 127.0.0.1\n")
    try:
        yield
    finally:
        RESOLV_CONF.write_bytes(before)


def _start(work: object, *arguments: object) -> None:
    threading.Thread(target=work, args=arguments, daemon=True).start()  # type: ignore[arg-type]


def _create() -> None:
    for command in (
        f"ip netns add {NAMESPACE}",
        f"ip link add {_LINK} type veth peer name {_PEER} netns {NAMESPACE}",
        f"ip addr add 203.0.113.1/24 dev {_LINK}",
        f"ip -6 addr add 2001:db8::1/64 dev {_LINK} nodad",
        f"ip link set {_LINK} up",
        f"ip -n {NAMESPACE} link set lo up",
        f"ip -n {NAMESPACE} addr add {ADDRESS}/24 dev {_PEER}",
        f"ip -n {NAMESPACE} -6 addr add {ADDRESS6}/64 dev {_PEER} nodad",
        f"ip -n {NAMESPACE} link set {_PEER} up",
        # Replies to source addresses that were not translated.
        f"ip -n {NAMESPACE} route add default via 203.0.113.1",
    ):
        subprocess.run(command.split(), check=True)


def remove() -> None:
    """Remove link and namespace of an earlier run."""
    for command in (f"ip link del {_LINK}", f"ip netns del {NAMESPACE}"):
        subprocess.run(command.split(), capture_output=True, check=False)


@contextlib.contextmanager
def _sniffer() -> Iterator["subprocess.Popen[str]"]:
    """Run a program in the namespace that prints a line per packet."""
    command = ["ip", "netns", "exec", NAMESPACE, sys.executable, "-I", "-u", "-c", SNIFFER]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as sniffer:
        assert sniffer.stdout is not None
        assert sniffer.stdout.readline() == "listening\n"
        try:
            yield sniffer
        finally:
            sniffer.kill()


def _record(sniffer: "subprocess.Popen[str]", packets: list[str]) -> None:
    assert sniffer.stdout is not None
    packets.extend(line.strip() for line in sniffer.stdout)


def _serve_dns(server: socket.socket, names: list[str]) -> None:
    while True:
        query, client = server.recvfrom(512)
        labels, at = [], 12
        while query[at]:
            labels.append(query[at + 1 : at + 1 + query[at]].decode("latin-1"))
            at += query[at] + 1
        names.append(".".join(labels))
        # The question section, and one answer: pointer to the name, type A, class IN, TTL 60, four bytes.
        response = query[:2] + b"\x81\x80\x00\x01\x00\x01\x00\x00\x00\x00" + query[12 : at + 5]
        response += b"\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x3c\x00\x04" + socket.inet_aton(ADDRESS)
        server.sendto(response, client)
