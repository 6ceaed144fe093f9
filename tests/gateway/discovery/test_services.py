"""The grammar of SERVICES, and the sink of the discovery providers."""

import pytest

from gateway.backends.backend_table import Backends
from gateway.discovery.target import make_target, parse_services
from gateway.settings import GatewaySettings
from kit.config.settings import SettingsError, load_settings
from tests.gateway.plain import CLOCK


def test_services_grammar() -> None:
    """Options in any order, with spaces and line breaks."""
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
def test_invalid_services_prevent_the_start(services: str) -> None:
    """The message quotes the entry and the grammar."""
    with pytest.raises(SettingsError, match="SERVICES is") as caught:
        load_settings(GatewaySettings, services=services)
    assert "NAME=URL" in str(caught.value)


async def test_sink_upserts_and_removes() -> None:
    """Unchanged targets keep their backend, changed ones replace it."""
    backends = Backends({}, CLOCK)
    changes: list[None] = []
    backends.on_change(lambda: changes.append(None))
    for target in parse_services("a=http://a:1,b=http://b:1"):
        backends.upsert(target)
    first = backends.get("a")
    backends.upsert(make_target("a", "http://a:1"))
    assert backends.get("a") is first
    backends.upsert(make_target("a", "http://a:2"))
    assert backends.get("a") is not first
    backends.remove("b")
    backends.remove("b")
    assert [backend.name for backend in backends] == ["a"]
    assert len(changes) == 4
