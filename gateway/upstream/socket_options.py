"""Socket options of connections to backends."""

import socket

# TCP keep-alive: seconds of silence before the first probe, between probes, and how many may be missed. A host that is
# gone is detected in about ten seconds.
PROBE_AFTER_S = 4
PROBE_EVERY_S = 2
MAX_PROBES = 3


def tune(raw: socket.socket) -> None:
    """Disable Nagle's algorithm and enable keep-alive probes.

    Without probes, connections to a host that lost power or network would never end. A hung process is not detected:
    its kernel responds. TCP_USER_TIMEOUT is not set: it would also end connections to a backend that only pauses in
    reading a large upload (tcp(7): data that cannot be sent because of a zero window counts).
    """
    if raw.family not in (socket.AF_INET, socket.AF_INET6):
        return
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, PROBE_EVERY_S)
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, MAX_PROBES)
    # The BSDs and macOS have another name for it; there the system's value is used.
    if hasattr(socket, "TCP_KEEPIDLE"):
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, PROBE_AFTER_S)
