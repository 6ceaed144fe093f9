"""A line of bounded speed before a program: everybody who reaches it through the line shares what it carries.

A proxy of TCP on a port of 127.0.0.1: on loopback alone a download costs nothing but CPU, which no real line does.
"""

import contextlib
import socket
import threading

from kit.net.retry import Cancelled
from registry.download.bandwidth import BandwidthLimit

PIECE = 128 << 10
RECEIVE_BUFFER = 256 << 10


class Line:
    """Carries connections to `port`, answers at `bytes_per_second` over all of them together. A context manager."""

    def __init__(self, port: int, bytes_per_second: float) -> None:
        self._target = ("127.0.0.1", port)
        self._pace = BandwidthLimit(bytes_per_second)
        self._stop = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> "Line":
        threading.Thread(target=self._accept, name="line", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._listener.shutdown(socket.SHUT_RDWR)  # who waits for a connection hears it; of a mere `close` he does not
        self._listener.close()

    def _accept(self) -> None:
        while not self._stop.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return  # closed: it is over
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, socket.socket() as server, contextlib.suppress(OSError):
            # What has come this far has left the source, so little of it may wait here.
            server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
            server.connect(self._target)
            asking = threading.Thread(target=self._carry, args=(client, server, False), daemon=True)
            asking.start()
            self._carry(server, client, True)
            asking.join()

    def _carry(self, one: socket.socket, other: socket.socket, paced: bool) -> None:
        view = memoryview(bytearray(PIECE))
        with contextlib.suppress(OSError, Cancelled):
            while count := one.recv_into(view):
                if paced:
                    self._pace.wait(count, self._stop)
                other.sendall(view[:count])
        for each in (one, other):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
