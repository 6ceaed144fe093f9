"""A TCP proxy on 127.0.0.1 with limited bandwidth, shared by all its connections."""

import contextlib
import socket
import threading

from kit.net.retry import Cancelled
from registry.download.file_download import BandwidthLimit

PIECE = 128 << 10
RECEIVE_BUFFER = 256 << 10


class BandwidthLimitedProxy:
    """Forwards connections to `port`; all responses together get `bytes_per_second`. A context manager."""

    def __init__(self, port: int, bytes_per_second: float) -> None:
        self._target = ("127.0.0.1", port)
        self._pace = BandwidthLimit(bytes_per_second)
        self._stop = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> "BandwidthLimitedProxy":
        threading.Thread(target=self._accept, name="line", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._listener.shutdown(socket.SHUT_RDWR)  # `close` alone does not wake up `accept`
        self._listener.close()

    def _accept(self) -> None:
        while not self._stop.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return  # the listener is closed
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, socket.socket() as server, contextlib.suppress(OSError):
            # A small buffer: received bytes have already left the source.
            server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
            server.connect(self._target)
            requests = threading.Thread(target=self._forward, args=(client, server, False), daemon=True)
            requests.start()
            self._forward(server, client, True)
            requests.join()

    def _forward(self, source: socket.socket, sink: socket.socket, paced: bool) -> None:
        view = memoryview(bytearray(PIECE))
        with contextlib.suppress(OSError, Cancelled):
            while count := source.recv_into(view):
                if paced:
                    self._pace.wait(count, self._stop)
                sink.sendall(view[:count])
        for connection in (source, sink):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
