"""The blocking HTTP client: redirects of untrusted servers."""

import socket
import threading

import pytest

from kit.net.http_client import HttpClient
from kit.net.retry import TransientError


def client_of(url: str) -> HttpClient:
    return HttpClient(
        url, None, name="x", advice="", user_agent="x", connect_timeout_s=5, read_timeout_s=5, use_proxies=False
    )


@pytest.mark.parametrize("location", ["http://[::1:bad/", "http://h:99999/", "http://h:abc/"])
def test_invalid_redirect_target_is_a_transient_error(location: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def redirect() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(f"HTTP/1.1 302 Found\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode())

        thread = threading.Thread(target=redirect)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        client = client_of(url)
        with pytest.raises(TransientError, match="redirects to an invalid URL"), client.get(url):
            pass
        client.close()
        thread.join()


def test_redirect_keeps_its_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 302 Found\r\nLocation: /b\r\nContent-Length: 2\r\n\r\nno")
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nyes")

        thread = threading.Thread(target=serve)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        client = client_of(url)
        with client.get(url) as (response, final):
            assert (response.read(), final) == (b"yes", f"{url}b")
        client.close()
        thread.join()
