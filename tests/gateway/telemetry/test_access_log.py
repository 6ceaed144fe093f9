"""The access log of relayed requests."""

import io
import json
from datetime import datetime
from select import PIPE_BUF

import pytest

from gateway.telemetry.access_log import AccessLog, Line
from tests.gateway.conftest import StartBackend, StartGateway


async def test_json_lines() -> None:
    stream = io.StringIO()
    log = AccessLog(as_json=True, enabled=True, stream=stream)
    log.write(Line("/v1/x", 200, 1.5, "127.0.0.1", "one"))
    log.write(Line("/v1/y", 200, 1.5, None, "two"))
    log.flush()
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["path"] for line in lines] == ["/v1/x", "/v1/y"]
    assert lines[0].keys() >= {"event", "level", "logger", "service", "timestamp", "method"}
    assert lines[0]["event"] == "request"


async def test_text_lines_match_the_console_format() -> None:
    stream = io.StringIO()
    log = AccessLog(as_json=False, enabled=True, stream=stream)
    log.write(Line("/v1/x", 200, 1.5, "127.0.0.1", "one", 2, backend="llm-primary"))
    log.flush()
    time, _, flush = stream.getvalue().partition(" ")
    assert datetime.fromisoformat(time)
    assert flush == (
        "[info     ] request                        [access] "
        "attempts=2 backend=llm-primary client=127.0.0.1 method=POST ms=1.5 path=/v1/x request_id=one service=gateway "
        "status=200\n"
    )


async def test_text_lines_escape_control_characters() -> None:
    """A backend's model can have any name."""
    stream = io.StringIO()
    log = AccessLog(as_json=False, enabled=True, stream=stream)
    log.write(Line("/v1/x", 200, 1.5, "127.0.0.1", "one", 2, model="a\x1b[2J\nb"))
    log.flush()
    assert "model=a\\x1b[2J\\nb ms=" in stream.getvalue()
    assert stream.getvalue()[:-1].isprintable()


async def test_disabled_log_writes_nothing() -> None:
    stream = io.StringIO()
    log = AccessLog(as_json=True, enabled=False, stream=stream)
    log.write(Line("/", 200, 1.5, None, "one"))
    log.flush()
    assert stream.getvalue() == ""


class Pieces(io.StringIO):
    """A stream that records each write."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[str] = []

    def write(self, text: str) -> int:
        """Record a write."""
        self.pieces.append(text)
        return len(text)


async def test_lines_of_several_workers_do_not_mix() -> None:
    """Writes to a shared stream are at most PIPE_BUF bytes, or one longer line."""
    for alone in (False, True):
        stream = Pieces()
        log = AccessLog(as_json=True, enabled=True, is_only_writer=alone, stream=stream)
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
    """A stream whose disk is full, or whose reader has closed it."""

    def write(self, _: str) -> int:
        """Fail."""
        raise BrokenPipeError


async def test_failing_log_fails_no_request(
    start_backend: StartBackend, start_gateway: StartGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.telemetry.access_log.MAX_HELD", 2)
    gateway = await start_gateway(await start_backend())
    log = AccessLog(as_json=True, enabled=True, stream=Full())
    gateway.context.access_log = log
    for _ in range(4):
        assert (await gateway.http.post("/v1/chat/completions", content=b"{")).status_code == 400
    assert log.lost_lines == 4
