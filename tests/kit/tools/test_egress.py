"""Ways out: what gets out is named, and what does not is no problem."""

import socket
import struct
import threading
from collections.abc import Iterator

import pytest

from kit.tools import egress

# An address that is in no network (RFC 5737), which this test must not reach either.
NOWHERE = ("192.0.2.1", 443)


@pytest.fixture
def outside() -> Iterator[tuple[str, int]]:
    """Something that listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield "127.0.0.1", listener.getsockname()[1]


@pytest.fixture(autouse=True)
def no_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """No name is asked for in the world outside, and nobody waits long."""
    monkeypatch.setattr(egress, "OUTSIDE_NAME", "nothing.invalid")
    monkeypatch.setattr(egress, "OUTSIDE_DNS", ("127.0.0.1", 9))
    monkeypatch.setattr(egress, "WAIT_S", 0.3)


def test_a_connection_that_opens_got_out(outside: tuple[str, int], capsys: pytest.CaptureFixture[str]) -> None:
    """It is named, with what to do; exit 1."""
    with pytest.raises(SystemExit) as end:
        egress.main(["--outside", f"127.0.0.1:{outside[1]}"])
    assert end.value.code == 1
    status, check, detail, mend = capsys.readouterr().out.rstrip("\n").split("\t")
    assert (status, check) == ("problem", "egress")
    assert detail == f"TCP to 127.0.0.1 port {outside[1]} got out"
    assert "docker-compose.gpu-cluster.yml" in mend


def test_a_refusal_came_from_outside() -> None:
    """The way there is open, though the door is shut."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        shut = listener.getsockname()[1]
    assert [finding.status for finding in egress.look_outside([("127.0.0.1", shut)])] == ["problem"]


def test_a_name_server_that_answers_got_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A question in the form of RFC 1035 is sent to it, past the resolver."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(10)
        monkeypatch.setattr(egress, "OUTSIDE_DNS", server.getsockname())
        monkeypatch.setattr(egress, "WAIT_S", 10.0)
        asked: list[bytes] = []

        def answer() -> None:
            question, client = server.recvfrom(512)
            asked.append(question)
            server.sendto(question, client)

        answering = threading.Thread(target=answer)
        answering.start()
        findings = egress.look_outside([])
        answering.join()
    assert [finding.detail for finding in findings] == ["UDP to the name server 127.0.0.1 got out"]
    assert struct.unpack(">HHHHH", asked[0][2:12]) == (0x0100, 1, 0, 0, 0)
    assert asked[0][12:] == b"\x07nothing\x07invalid\x00\x00\x01\x00\x01"


def test_a_name_that_is_found_got_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The resolver of this container passes questions on."""
    monkeypatch.setattr(egress, "OUTSIDE_NAME", "localhost")
    assert [finding.detail for finding in egress.look_outside([])] == ["the name localhost got out"]


def test_no_way_out_is_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit 0, and what was tried."""
    monkeypatch.setattr(egress, "_tcp", lambda host, port: lambda: False)
    with pytest.raises(SystemExit) as end:
        egress.main(["--outside", f"{NOWHERE[0]}:{NOWHERE[1]}", "--outside", "[2001:db8::1]:443"])
    assert end.value.code == 0
    told = capsys.readouterr().out
    assert told.startswith("ok\tegress\tno way out by TCP to 192.0.2.1 port 443, TCP to 2001:db8::1 port 443, UDP")
    assert told.count("\n") == 1
