"""Egress check: successful attempts are problems, failed ones are not."""

import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest

from kit.tools import egress

# Reserved for documentation (RFC 5737); not contacted here either.
UNREACHABLE = ("192.0.2.1", 443)
# No DNS query leaves this machine, and timeouts are short.
OUTSIDE = egress.Outside(addresses=(), dns_server=("127.0.0.1", 9), name="nothing.invalid", timeout_s=0.3)


@pytest.fixture
def outside() -> Iterator[tuple[str, int]]:
    """A listening socket."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield "127.0.0.1", listener.getsockname()[1]


def test_successful_connection_is_a_problem(outside: tuple[str, int], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        egress.main(["--outside", f"127.0.0.1:{outside[1]}"], OUTSIDE)
    assert end.value.code == 1
    status, check, detail, fix = capsys.readouterr().out.rstrip("\n").split("\t")
    assert (status, check) == ("problem", "egress")
    assert detail == f"TCP to 127.0.0.1 port {outside[1]} succeeded"
    assert "docker-compose.gpu-cluster.yml" in fix


def test_refused_connection_is_a_problem() -> None:
    """The host was reached, though its port is closed."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        closed = listener.getsockname()[1]
    findings = egress.check_egress(replace(OUTSIDE, addresses=[("127.0.0.1", closed)]))
    assert [finding.status for finding in findings] == ["problem"]


def test_dns_server_that_responds_is_a_problem() -> None:
    """A query (RFC 1035) is sent to it directly."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(10)
        queries: list[bytes] = []

        def respond() -> None:
            query, client = server.recvfrom(512)
            queries.append(query)
            server.sendto(query, client)

        responder = threading.Thread(target=respond)
        responder.start()
        findings = egress.check_egress(replace(OUTSIDE, dns_server=server.getsockname(), timeout_s=10.0))
        responder.join()
    assert [finding.detail for finding in findings] == ["UDP to the DNS server 127.0.0.1 succeeded"]
    assert struct.unpack(">HHHHH", queries[0][2:12]) == (0x0100, 1, 0, 0, 0)
    assert queries[0][12:] == b"\x07nothing\x07invalid\x00\x00\x01\x00\x01"


def test_resolved_name_is_a_problem() -> None:
    """The container's resolver forwards queries."""
    findings = egress.check_egress(replace(OUTSIDE, name="localhost"))
    assert [finding.detail for finding in findings] == ["resolving localhost succeeded"]


def test_no_egress_is_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit 0, and the list of attempts."""

    def time_out(*_: object, **__: object) -> None:
        raise TimeoutError

    monkeypatch.setattr(socket, "create_connection", time_out)
    with pytest.raises(SystemExit) as end:
        egress.main(["--outside", f"{UNREACHABLE[0]}:{UNREACHABLE[1]}", "--outside", "[2001:db8::1]:443"], OUTSIDE)
    assert end.value.code == 0
    printed = capsys.readouterr().out
    assert printed.startswith("ok\tegress\tno egress: TCP to 192.0.2.1 port 443, TCP to 2001:db8::1 port 443, UDP")
    assert printed.count("\n") == 1
