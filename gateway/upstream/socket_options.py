"""How connections to backends are set up in the kernel."""

import socket

# After how many seconds of silence the other host is probed, how often, and how many probes it may miss: one that is
# gone is noticed in about ten seconds.
PROBE_AFTER_S = 4
PROBE_EVERY_S = 2
MAX_PROBES = 3


def tune(raw: socket.socket) -> None:
    """Send small pieces at once; let the kernel ask the other host whether it is there while an answer is waited for.

    A host that has lost its power or its cable says nothing, and its connections would stay for ever. A process that
    hangs is none of this: its kernel answers. TCP_USER_TIMEOUT would also end connections to a backend that only pauses
    in reading a large upload (tcp(7): data that cannot be sent because of a zero window counts), so it is not set.
    """
    if raw.family not in (socket.AF_INET, socket.AF_INET6):
        return
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, PROBE_EVERY_S)
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, MAX_PROBES)
    # The BSDs, and macOS, name the option that Linux calls TCP_KEEPIDLE otherwise; there the system's value has to do.
    if hasattr(socket, "TCP_KEEPIDLE"):
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, PROBE_AFTER_S)
