"""A line of bounded speed: what goes through it, and when it is over."""

import socket
import threading

import httpx2
import pytest

from bench.sources.slow_line import PIECE, Line
from tests.support import plain_http


def answer_once(listener: socket.socket, body: bytes) -> None:
    """Take one request, and answer it with `body`."""
    connection, _ = listener.accept()
    with connection:
        connection.recv(1 << 16)
        connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)


def test_what_goes_in_comes_out() -> None:
    """All of it, in order, and the end of the connection too; nobody answers when the line is gone."""
    body = bytes(range(256)) * (3 * PIECE // 256) + b"end"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = threading.Thread(target=answer_once, args=(listener, body))
        server.start()
        with Line(listener.getsockname()[1], 1e9) as line:
            assert plain_http.get(line.url).content == body
        server.join()
    with pytest.raises(httpx2.TransportError):
        plain_http.get(line.url)
