"""deploy/chat-ui/start.sh: Chat UI starts once the gateway lists all its models."""

import http.server
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "deploy" / "chat-ui" / "start.sh"
ONE = '{"object":"list","data":[{"id":"cluster"},{"id":"minilm"}]}'
ALL = '{"object":"list","data":[{"id":"cluster"},{"id":"minilm"},{"id":"qwen"}]}'
HANG_S = 30

pytestmark = pytest.mark.skipif(
    shutil.which("bash") is None or shutil.which("curl") is None, reason="needs bash and curl"
)


class Gateway(http.server.ThreadingHTTPServer):
    """Responds to each request with the next of `responses`; the last is repeated."""

    def __init__(self, *responses: tuple[int, str]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.responses = list(responses)
        self.requests: list[tuple[str, str | None]] = []


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Gateway

    def do_GET(self) -> None:
        self.server.requests.append((self.path, self.headers["Authorization"]))
        status, body = self.server.responses[0] if len(self.server.responses) == 1 else self.server.responses.pop(0)
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: object) -> None:
        """Log nothing."""


Serve = Callable[..., Gateway]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Return a function that starts a gateway with given responses."""
    started: list[Gateway] = []

    def start(*responses: tuple[int, str]) -> Gateway:
        gateway = Gateway(*responses)
        threading.Thread(target=gateway.serve_forever, daemon=True).start()
        started.append(gateway)
        return gateway

    yield start
    for gateway in started:
        gateway.shutdown()
        gateway.server_close()


def run(tmp_path: Path, gateway: Gateway, key: str = "none") -> list[str]:
    """Run the script to its end; returns what was printed, the image's entry point last."""
    entry = tmp_path / "entrypoint.sh"
    entry.write_text('echo "the image: $OPENAI_BASE_URL"\n')
    environment = {
        "PATH": "/usr/bin:/bin",
        "OPENAI_BASE_URL": f"http://127.0.0.1:{gateway.server_port}/v1/",
        "OPENAI_API_KEY": key,
        "MODELS_PAUSE_S": "0.01",
        "CHAT_UI_ENTRYPOINT": str(entry),
    }
    done = subprocess.run(
        ["bash", str(SCRIPT)], env=environment, capture_output=True, text=True, timeout=HANG_S, check=True
    )
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_start_waits_for_a_stable_model_list(tmp_path: Path, serve: Serve) -> None:
    """Each reason for waiting is logged once."""
    empty = '{"object":"list","data":[]}'
    gateway = serve((503, "loading"), (503, "loading"), (200, empty), (200, ONE), (200, ALL), (200, ALL))
    printed = run(tmp_path, gateway)
    assert len(gateway.requests) == 6
    assert set(gateway.requests) == {("/v1/models", "Bearer none")}
    assert [line.partition(" (")[0] for line in printed] == [
        "Chat UI waits: the gateway lists no models yet",
        "Chat UI waits: the gateway lists no models yet",
        "Chat UI waits: the list of models is still growing",
        "Chat UI starts",
        f"the image: http://127.0.0.1:{gateway.server_port}/v1/",
    ]
    assert "503" in printed[0]


def test_escaped_dollar_in_the_key_is_unescaped(tmp_path: Path, serve: Serve) -> None:
    """And no key is printed."""
    gateway = serve((401, "no"), (200, ALL))
    printed = run(tmp_path, gateway, key=r"sk-\$HOME\$1")
    assert {key for _, key in gateway.requests} == {"Bearer sk-$HOME$1"}
    assert "sk-" not in "".join(printed)
