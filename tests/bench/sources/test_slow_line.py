"""The bandwidth-limited proxy."""

import socket
import threading

import httpx2
import pytest

from bench.sources.slow_line import PIECE, BandwidthLimitedProxy
from tests.support import plain_http


def answer_once(listener: socket.socket, body: bytes) -> None:
    """Accept one request and respond with `body`."""
    connection, _ = listener.accept()
    with connection:
        connection.recv(1 << 16)
        connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)


def test_bytes_pass_unchanged_until_the_proxy_stops() -> None:
    body = bytes(range(256)) * (3 * PIECE // 256) + b"end"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = threading.Thread(target=answer_once, args=(listener, body))
        server.start()
        with BandwidthLimitedProxy(listener.getsockname()[1], 1e9) as line:
            assert plain_http.get(line.url).content == body
        server.join()
    with pytest.raises(httpx2.TransportError):
        plain_http.get(line.url)
