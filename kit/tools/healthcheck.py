"""`python -m kit.tools.healthcheck`: the HEALTHCHECK of our containers. Prints one line of `GET /health`.

Uses a plain socket, because it runs every few seconds and an HTTP client is slow to import.
"""

import json
import os
import socket
import sys

TIMEOUT_S = 4.0
MAX_LINE_LENGTH = 400
MAX_BYTES = 1 << 20


def main() -> None:
    """Print the service's health; exit with 0 only for status 200."""
    healthy, line = check(os.environ.get("PORT", ""), TIMEOUT_S)
    sys.stdout.write(line + "\n")
    raise SystemExit(0 if healthy else 1)


def check(port: str, timeout_s: float) -> tuple[bool, str]:
    """Return whether the local service on `port` is healthy, and a line to print."""
    if not port.isdecimal():
        return False, f"PORT={port!r} is not a port. Set PORT to the port of the service."
    try:
        response = _get_health(int(port), timeout_s)
    except TimeoutError:
        return False, f"no response on port {port} within {timeout_s:g} s"
    except OSError as error:
        return False, f"cannot connect to port {port}: {error.strerror or error}"
    head, _, body = response.partition(b"\r\n\r\n")
    status = head.split(b" ", 2)[1:2]
    return status == [b"200"], _line(b"".join(status).decode("latin-1"), body)


def _get_health(port: int, timeout_s: float) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout_s) as connection:
        # HTTP/1.0: the response is not chunked and ends with the connection.
        connection.sendall(b"GET /health HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n")
        response = b""
        while len(response) < MAX_BYTES and (chunk := connection.recv(65536)):
            response += chunk
        return response


def _line(status: str, body: bytes) -> str:
    """Return `loading 42 %: fetching model.safetensors`, or the HTTP status if the body is not ours."""
    try:
        health = json.loads(body)
        line = str(health["status"])
        if line != "healthy" and "progress" in health:
            line += f" {int(health['progress'] * 100)} %"
    except (ValueError, TypeError, KeyError, RecursionError):
        return f"HTTP status {status}" if status else "not an HTTP response"
    detail = str(health.get("detail") or "")
    return " ".join((f"{line}: {detail}" if detail else line).split())[:MAX_LINE_LENGTH]


if __name__ == "__main__":
    main()
