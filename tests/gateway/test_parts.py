"""The small parts: settings, discovery, events, access log."""

import io
import json
from datetime import datetime
from pathlib import Path
from select import PIPE_BUF
from typing import Any

import pytest

from gateway.backends.backend_table import Backends
from gateway.discovery.provider import StaticProvider
from gateway.discovery.target import make_target, parse_services
from gateway.settings import GatewaySettings
from gateway.streams.sse import MAX_PARTIAL, EventBuffer, error_event
from gateway.telemetry.access_log import AccessLog, Line
from kit.config.settings import SettingsError, load_settings
from kit.errors import BadGateway
from tests.gateway.conftest import StartBackend, StartGateway
from tests.gateway.plain import CLOCK


def test_services_grammar() -> None:
    """Every part of the grammar, in any order, with spaces and line breaks."""
    one, two, three = parse_services(
        "llm-primary=http://127.0.0.1:8000/, gpu9 = https://h.example/openai/v1 ;models=a/b|c; kind=embedding\n"
        "v6=http://[::1]:9; dns"
    )
    assert (one.name, one.url, one.host, one.port, one.kind) == (
        "llm-primary", "http://127.0.0.1:8000", "127.0.0.1", 8000, None,
    )  # fmt: skip
    assert (two.host, two.port, two.tls, two.path, two.kind) == ("h.example", 443, True, "/openai", "embedding")
    assert two.models == ("a/b", "c")
    assert two.url == "https://h.example/openai"
    assert three.authority == "[::1]:9"
    assert [target.by_dns for target in (one, two, three)] == [False, False, True]


@pytest.mark.parametrize(
    "services",
    ["http://127.0.0.1:8000", "a=127.0.0.1:8000", "a=ftp://x", "a=http://", "a=http://x;kind=poet", "a=http://x;models=",
     "a=http://x;color=red", "a=http://x;dns=no",
     "a=http://x,a=http://y", "a b=http://x", "a=http://u:p@x", "a=http://x:99999", "a=http://x?q"],
)  # fmt: skip
def test_services_refused(services: str) -> None:
    """A wrong entry fails at start with the variable's name and the entry."""
    with pytest.raises(SettingsError, match="SERVICES is") as caught:
        load_settings(GatewaySettings, services=services)
    assert "NAME=URL" in str(caught.value)


def test_defaults_are_the_quick_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a variable the gateway listens on 8080 and knows the five services on their ports."""
    for name in ("SERVICES", "PORT"):
        monkeypatch.delenv(name, raising=False)
    settings = load_settings(GatewaySettings)
    assert settings.port == 8080
    assert {target.name: target.port for target in settings.services} == {
        "llm-primary": 8000,
        "llm-secondary": 8001,
        "embedding": 8002,
        "multimodal": 8003,
        "transcription": 8004,
    }


def test_environment_and_key_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """SERVICES comes from the environment, keys from files with one per line."""
    monkeypatch.setenv("SERVICES", "a=http://a:1")
    (tmp_path / "keys").write_text("one\ntwo, three\n")
    (tmp_path / "backends").write_text("a=secret-a\nb=secret=b\n")
    monkeypatch.setenv("GATEWAY_API_KEYS_FILE", str(tmp_path / "keys"))
    monkeypatch.setenv("BACKEND_KEYS_FILE", str(tmp_path / "backends"))
    settings = load_settings(GatewaySettings)
    assert [target.name for target in settings.services] == ["a"]
    ring = settings.key_ring()
    for key in ("one", "two", "three"):
        assert ring.refusal(f"Bearer {key}") is None
    assert ring.refusal("Bearer four") is not None
    assert settings.keys_of_backends() == {"a": "secret-a", "b": "secret=b"}


@pytest.mark.parametrize("value", ["a", "a=", "a=b c"])
def test_backend_keys_refused_without_showing_them(value: str) -> None:
    """A malformed BACKEND_KEYS fails at start and its value is not in the message."""
    with pytest.raises(SettingsError, match="BACKEND_KEYS") as caught:
        load_settings(GatewaySettings, backend_keys=value)
    assert "not shown" in str(caught.value)


@pytest.mark.parametrize("value", [",", " ", "\n,"])
def test_keys_without_a_key_are_refused(value: str) -> None:
    """GATEWAY_API_KEYS with nothing in it must not open what it was to lock."""
    with pytest.raises(SettingsError, match="GATEWAY_API_KEYS contains no key"):
        load_settings(GatewaySettings, gateway_api_keys=value).key_ring()


async def test_discovery_upserts_and_removes() -> None:
    """The sink adds, keeps what is unchanged, replaces what differs, and removes."""
    backends = Backends({}, CLOCK)
    changes: list[None] = []
    backends.on_change(lambda: changes.append(None))
    await StaticProvider(parse_services("a=http://a:1,b=http://b:1")).start(backends)
    first = backends.get("a")
    backends.upsert(make_target("a", "http://a:1"))
    assert backends.get("a") is first
    backends.upsert(make_target("a", "http://a:2"))
    assert backends.get("a") is not first
    backends.remove("b")
    backends.remove("b")
    assert [backend.name for backend in backends] == ["a"]
    assert len(changes) == 4


@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n", b"\r\r"])
def test_holder_passes_whole_events_only(end: bytes) -> None:
    """Cut anywhere, events come out whole, and nothing is lost."""
    events = [b"data: %d" % index + end for index in range(3)]
    for cut in range(1, len(b"".join(events))):
        data = b"".join(events)
        buffer = EventBuffer()
        first = buffer.feed(data[:cut])
        assert first == b"" or first.endswith(end)
        assert first + buffer.feed(data[cut:]) + buffer.flush() == data


def test_holder_is_bounded() -> None:
    """An endless event goes on in pieces rather than filling the memory."""
    buffer = EventBuffer()
    assert len(buffer.feed(b"x" * (MAX_PARTIAL + 1))) == MAX_PARTIAL + 1


def test_holder_gives_the_rest_at_the_end() -> None:
    """A last event without its blank line is not lost."""
    buffer = EventBuffer()
    assert buffer.feed(b"data: a\n\ndata: b\n") == b"data: a\n\n"
    assert buffer.flush() == b"data: b\n"


@pytest.mark.parametrize("dialect", ["openai", "responses", "anthropic"])
def test_error_events_are_events(dialect: Any) -> None:
    """Each API's error event is one event with one JSON line."""
    event = error_event(BadGateway("a\nb é"), dialect)
    assert event.endswith(b"\n\n")
    assert event.count(b"\n\n") == 1
    body = json.loads(event.rpartition(b"data: ")[2])
    assert "a\nb é" in json.dumps(body, ensure_ascii=False).replace("\\n", "\n")


async def test_access_log_lines_are_json() -> None:
    """A line has the shape of the frame's, and is written when flushed."""
    stream = io.StringIO()
    log = AccessLog("gateway", as_json=True, enabled=True, stream=stream)
    log.write(Line("/v1/x", 200, 1.5, "127.0.0.1", "one"))
    log.write(Line("/v1/y", 200, 1.5, None, "two"))
    log.flush()
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["path"] for line in lines] == ["/v1/x", "/v1/y"]
    assert lines[0].keys() >= {"event", "level", "logger", "service", "timestamp", "method"}
    assert lines[0]["event"] == "request"


async def test_access_log_lines_are_text_for_people() -> None:
    """In the console's format the line looks like all others of the program."""
    stream = io.StringIO()
    log = AccessLog("gateway", as_json=False, enabled=True, stream=stream)
    log.write(Line("/v1/x", 200, 1.5, "127.0.0.1", "one", 2, backend="llm-primary"))
    log.flush()
    time, _, flush = stream.getvalue().partition(" ")
    assert datetime.fromisoformat(time)
    assert flush == (
        "[info     ] request                        [access] "
        "attempts=2 backend=llm-primary client=127.0.0.1 method=POST ms=1.5 path=/v1/x request_id=one service=gateway "
        "status=200\n"
    )


async def test_access_log_can_be_off() -> None:
    """Above INFO nothing is written."""
    stream = io.StringIO()
    log = AccessLog("gateway", as_json=True, enabled=False, stream=stream)
    log.write(Line("/", 200, 1.5, None, "one"))
    log.flush()
    assert stream.getvalue() == ""


class Pieces(io.StringIO):
    """A stream that remembers what it was given at once."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[str] = []

    def write(self, text: str) -> int:
        """Take a piece."""
        self.pieces.append(text)
        return len(text)


async def test_access_log_lines_of_several_workers_do_not_mix() -> None:
    """Who is not alone writes no more at once than a pipe takes whole, but a longer line as it is; who is, all."""
    for alone in (False, True):
        stream = Pieces()
        log = AccessLog("gateway", as_json=True, enabled=True, is_only_writer=alone, stream=stream)
        ids = ["a", "b" * 2 * PIPE_BUF, *[f"c{index}" * 50 for index in range(100)]]
        for request_id in ids:
            log.write(Line("/v1/x", 200, 1.5, None, request_id))
        log.flush()
        lines = "".join(stream.pieces).splitlines()
        assert [json.loads(line)["request_id"] for line in lines] == ids
        assert all(piece.endswith("\n") for piece in stream.pieces)
        whole = [len(piece) for piece in stream.pieces if piece.count("\n") > 1]
        assert len(stream.pieces) == 1 if alone else whole and max(whole) <= PIPE_BUF


class Full(io.StringIO):
    """A stream whose disk is full, or whose reader has gone."""

    def write(self, _: str) -> int:
        """Fail."""
        raise BrokenPipeError


async def test_access_log_that_cannot_be_written_costs_no_request(
    start_backend: StartBackend, start_gateway: StartGateway
) -> None:
    """With standard error gone, every request is still answered on its connection, however many lines are lost."""
    gateway = await start_gateway(await start_backend())
    log = AccessLog("gateway", as_json=True, enabled=True, stream=Full(), max_held=2)
    gateway.context.access_log = log
    for _ in range(4):
        assert (await gateway.http.post("/v1/chat/completions", content=b"{")).status_code == 400
    assert log.lost_lines == 4
