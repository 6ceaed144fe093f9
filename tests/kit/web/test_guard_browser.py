"""Host and Origin checks against cross-site requests and DNS rebinding."""

import pytest
from starlette.datastructures import Headers

from kit.web.guard import BrowserGuard, may_be_from_foreign_page

REBOUND = "rebind.attacker.example"


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "localhost:8080",
        "LOCALHOST:8080",
        "LocalHost",
        "localhost.",
        "localhost.:8080",
        "localhost:",
        "chat.localhost:8080",
        "gateway",
        "gateway:8080",
        "llm-primary:8000",
        "127.0.0.1",
        "127.0.0.1:8080",
        "127.1.2.3:1",
        "192.168.7.9:8080",
        "10.0.0.1",
        "[::1]",
        "[::1]:8080",
        "[FE80::1]:8080",
        "[2001:db8::7]:8080",
        "[::ffff:127.0.0.1]:8080",
    ],
)
def test_addresses_and_names_without_a_dot_are_allowed(host: str) -> None:
    """No public domain can be rebound to these."""
    assert BrowserGuard().refusal(host, None) is None


@pytest.mark.parametrize(
    "host",
    [
        REBOUND,
        f"{REBOUND}:8080",
        REBOUND.upper(),
        f"{REBOUND}.",
        f"{REBOUND}.:8080",
        "127.0.0.1.nip.example",
        "127.0.0.1.attacker.example:8080",
        "localhost.attacker.example",
        "attacker.localhost.example",
        "notlocalhost.example",
        "1.2.3",
        "1.2.3.4.5",
        "0x7f.0.0.1",
        "user@evil.example",
        "[::1].attacker.example.:80".replace("[", "").replace("]", ""),
        "::1.evil.example",
        "[not-an-address:]",
        "[",
        "[]",
        ":8080",
        "",
        ".",
        "evil.example:80:80",
        "evil.example:http",
    ],
)
def test_foreign_host_is_rejected(host: str) -> None:
    """A page that rebound its domain to 127.0.0.1 still sends its own Host."""
    refusal = BrowserGuard().refusal(host, None)
    assert refusal is not None
    assert (refusal.status, refusal.type, refusal.code) == (403, "permission_error", "host_not_allowed")
    assert "ALLOWED_HOSTS" in refusal.message


def test_missing_host_is_rejected() -> None:
    """RFC 9112, 3.2."""
    assert BrowserGuard().refusal(None, None) is not None


@pytest.mark.parametrize(
    ("allowed", "host", "passes"),
    [
        ("chat.example.org", "chat.example.org", True),
        ("chat.example.org", "CHAT.example.org:443", True),
        ("chat.example.org", "chat.example.org.", True),
        ("Chat.Example.Org", "chat.example.org", True),
        ("chat.example.org.", "chat.example.org", True),
        ("chat.example.org:8443", "chat.example.org:8443", True),
        ("chat.example.org", "other.example.org", False),
        ("chat.example.org", "achat.example.org", False),
        ("chat.example.org", "chat.example.org.evil.example", False),
        (".example.org", "a.example.org", True),
        (".example.org", "a.b.example.org", True),
        (".example.org", "example.org", False),
        (".example.org", "evilexample.org", False),
        ("*", "anything.example", True),
        ("*", "", False),
    ],
)
def test_allowed_hosts_exact_suffix_or_any(allowed: str, host: str, passes: bool) -> None:
    assert (BrowserGuard([allowed]).refusal(host, None) is None) is passes


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("localhost:8080", "http://localhost:8080"),
        ("LOCALHOST:8080", "http://localhost:8080"),
        ("localhost:8080", "HTTP://LOCALHOST:8080"),
        ("127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("[::1]:8080", "http://[::1]:8080"),
        ("gateway", "http://gateway"),
        ("localhost", "https://localhost"),
    ],
)
def test_same_origin_is_allowed(host: str, origin: str) -> None:
    assert BrowserGuard().refusal(host, origin) is None


@pytest.mark.parametrize(
    "origin",
    [
        "null",
        "",
        "http://evil.example",
        "https://evil.example:8080",
        "http://localhost:3000",
        "http://localhost",
        "http://127.0.0.1:8080",
        "http://localhost:8080.evil.example",
        "http://evil.example/localhost:8080",
        "http://evil.example?localhost:8080",
        "http://user@localhost:8080",
        "http://[::1",
        "file://",
        "chrome-extension://abcdef",
        "localhost:8080",
    ],
)
def test_other_origins_are_rejected(origin: str) -> None:
    """`null` (sandboxed frames, files) and invalid ones included."""
    refusal = BrowserGuard().refusal("localhost:8080", origin)
    assert refusal is not None
    assert (refusal.status, refusal.code) == (403, "origin_not_allowed")
    assert "ALLOWED_ORIGINS" in refusal.message


@pytest.mark.parametrize(
    ("allowed", "origin", "passes"),
    [
        ("https://chat.example.org", "https://chat.example.org", True),
        ("https://chat.example.org/", "https://chat.example.org", True),
        ("HTTPS://Chat.Example.org", "https://chat.example.org", True),
        ("https://chat.example.org", "http://chat.example.org", False),
        ("https://chat.example.org", "https://chat.example.org:8443", False),
        ("https://chat.example.org", "https://chat.example.org.evil.example", False),
        ("https://chat.example.org", "null", False),
        ("null", "null", True),
        ("*", "https://anything.example", True),
    ],
)
def test_allowed_origins_match_scheme_host_and_port(allowed: str, origin: str, passes: bool) -> None:
    assert (BrowserGuard((), [allowed]).refusal("localhost:8080", origin) is None) is passes


CHROME = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 Safari/537.36"


@pytest.mark.parametrize(
    ("headers", "foreign"),
    [
        ({"Sec-Fetch-Site": "cross-site"}, True),
        ({"Sec-Fetch-Site": "same-site", "User-Agent": CHROME}, True),
        ({"Sec-Fetch-Site": ""}, True),
        ({"User-Agent": CHROME}, True),
        ({"Sec-Fetch-Site": "none", "User-Agent": CHROME}, False),
        ({"Sec-Fetch-Site": "same-origin", "User-Agent": CHROME}, False),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "https://chat.example.org"}, False),
        ({"User-Agent": "huggingface_hub/2.4.0"}, False),
        ({}, False),
    ],
)
def test_gets_that_a_foreign_page_may_cause(headers: dict[str, str], foreign: bool) -> None:
    """https://w3c.github.io/webappsec-fetch-metadata/; a request with an Origin has passed the check of origins."""
    assert may_be_from_foreign_page(Headers(headers)) is foreign
