"""`python -m kit.tools.healthcheck`: a container's HEALTHCHECK. Prints one line of its own `/health`.

Runs every few seconds in every container, so it imports next to nothing: a socket, not an HTTP client.
"""

import json
import os
import socket
import sys

TIMEOUT_S = 4.0
SHOWN = 400
MAX_BYTES = 1 << 20


def main() -> None:
    """Print how the service is; exit 0 only when it answers 200."""
    well, line = check(os.environ.get("PORT", ""), TIMEOUT_S)
    sys.stdout.write(line + "\n")
    raise SystemExit(0 if well else 1)


def check(port: str, timeout_s: float) -> tuple[bool, str]:
    """Whether the service on `port` of this machine is well, and one line that says so."""
    if not port.isdecimal():
        return False, f"PORT={port!r} is not a port. Set PORT to the one that the service listens on."
    try:
        answer = _get_health(int(port), timeout_s)
    except TimeoutError:
        return False, f"no answer on port {port} within {timeout_s:g} s"
    except OSError as error:
        return False, f"nothing answers on port {port}: {error.strerror or error}"
    head, _, body = answer.partition(b"\r\n\r\n")
    status = head.split(b" ", 2)[1:2]
    return status == [b"200"], _line(b"".join(status).decode("latin-1"), body)


def _get_health(port: int, timeout_s: float) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout_s) as connection:
        # HTTP/1.0, so that the answer is not chunked and the connection's end is the answer's end.
        connection.sendall(b"GET /health HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n")
        answer = b""
        while len(answer) < MAX_BYTES and (chunk := connection.recv(65536)):
            answer += chunk
        return answer


def _line(status: str, body: bytes) -> str:
    """`loading 42 %: fetching model.safetensors`, or the HTTP status where the body is not ours."""
    try:
        health = json.loads(body)
        line = str(health["status"])
        if line != "healthy" and "progress" in health:
            line += f" {int(health['progress'] * 100)} %"
    except (ValueError, TypeError, KeyError):
        return f"HTTP status {status}" if status else "not an HTTP answer"
    detail = str(health.get("detail") or "")
    return " ".join((f"{line}: {detail}" if detail else line).split())[:SHOWN]


if __name__ == "__main__":
    main()
