"""API keys and the admin token."""

import ipaddress

import pytest

from kit.web.guard import AdminGuard, KeyRing, bearer

LOOPBACK = (ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128"))


def as_header(text: str) -> str:
    """What an ASGI server hands on when a client sends `text` as UTF-8: the bytes, decoded as latin-1."""
    return text.encode().decode("latin-1")


@pytest.mark.parametrize(
    ("header", "token"),
    [
        ("Bearer abc", "abc"),
        ("bearer abc", "abc"),
        ("BEARER   abc  ", "abc"),
        ("  Bearer abc", "abc"),
        ("Bearer a b", "a b"),
        ("Bearer", None),
        ("Bearer ", None),
        ("Basic abc", None),
        ("abc", None),
        ("Bearerabc", None),
        ("", None),
        (None, None),
    ],
)
def test_bearer_scheme(header: str | None, token: str | None) -> None:
    """Case-insensitive (RFC 9110, 11.1); no other scheme."""
    assert bearer(header) == token


@pytest.mark.parametrize("header", [None, "", "Bearer x", "nonsense"])
def test_empty_key_ring_admits_every_request(header: str | None) -> None:
    ring = KeyRing([], variable="API_KEYS")
    assert not ring
    assert ring.refusal(header) is None


@pytest.mark.parametrize("key", ["one", "two", "ключ", "schlüssel", "🔑"])
def test_known_keys_pass(key: str) -> None:
    """Non-ASCII keys included."""
    ring = KeyRing(["one", "two", "ключ", "schlüssel", "🔑"], variable="API_KEYS")
    assert ring
    assert ring.refusal("Bearer " + as_header(key)) is None


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer ",
        "Bearer three",
        "Bearer One",
        "Bearer on",
        "Bearer one,two",
        "Basic one",
        "Bearer \xff\xfe",
        "Bearer ключ",
        "Bearer \ud800",
        "Bearer " + "x" * 100_000,
    ],
)
def test_unknown_keys_are_rejected(header: str | None) -> None:
    """With a 401 that names the variable, never an exception."""
    refusal = KeyRing(["one", "two"], variable="GATEWAY_API_KEYS").refusal(header)
    assert refusal is not None
    assert (refusal.status, refusal.code) == (401, "invalid_api_key")
    assert refusal.headers == {"WWW-Authenticate": "Bearer"}
    assert "GATEWAY_API_KEYS" in refusal.message


def test_error_contains_no_key() -> None:
    refusal = KeyRing(["known-secret"], variable="API_KEYS").refusal("Bearer presented-secret")
    assert refusal is not None
    assert "secret" not in refusal.message


@pytest.mark.parametrize("client", ["127.0.0.1", "127.8.9.1", "::1", "::ffff:127.0.0.1", "::1%lo"])
@pytest.mark.parametrize("token", [None, "secret"])
def test_loopback_needs_no_token(client: str, token: str | None) -> None:
    """IPv4-mapped addresses of a dual-stack socket included."""
    assert AdminGuard(token, LOOPBACK).refusal(client, None) is None


OFF_LOOPBACK = [
    "10.0.0.7",
    "192.168.1.1",
    "::2",
    "fe80::1%eth0",
    "::ffff:10.0.0.7",
    "128.0.0.1",
    "testclient",
    "",
    None,
]


@pytest.mark.parametrize("client", OFF_LOOPBACK)
def test_remote_change_without_configured_token_is_forbidden(client: str | None) -> None:
    """The message says what to set."""
    for header in (None, "Bearer ", "Bearer guess"):
        refusal = AdminGuard(None, LOOPBACK).refusal(client, header)
        assert refusal is not None
        assert (refusal.status, refusal.code) == (403, "admin_token_not_set")
        assert "ADMIN_TOKEN" in refusal.message


@pytest.mark.parametrize("client", OFF_LOOPBACK)
@pytest.mark.parametrize(
    ("header", "passes"),
    [
        ("Bearer secret", True),
        ("bearer secret", True),
        ("Bearer wrong", False),
        ("Bearer " + as_header("sécret"), False),
        ("Bearer \ud800", False),
        ("Bearer секрет", False),
        ("Basic secret", False),
        ("Bearer ", False),
        (None, False),
    ],
)
def test_remote_change_needs_the_token(client: str | None, header: str | None, passes: bool) -> None:
    """A peer without an address counts as remote."""
    refusal = AdminGuard("secret", LOOPBACK).refusal(client, header)
    assert (refusal is None) is passes
    if refusal is not None:
        assert (refusal.status, refusal.code) == (401, "invalid_api_key")


def test_non_ascii_token() -> None:
    guard = AdminGuard("пароль", LOOPBACK)
    assert guard.refusal("10.0.0.7", "Bearer " + as_header("пароль")) is None
    assert guard.refusal("10.0.0.7", "Bearer " + as_header("парол")) is not None


def test_empty_token_counts_as_unset() -> None:
    refusal = AdminGuard("", LOOPBACK).refusal("10.0.0.7", "Bearer ")
    assert refusal is not None
    assert refusal.status == 403


def test_trusted_networks_are_configurable() -> None:
    guard = AdminGuard(None, [ipaddress.ip_network("172.18.0.0/16")])
    assert guard.refusal("172.18.0.3", None) is None
    assert guard.refusal("::ffff:172.18.0.3", None) is None
    assert guard.refusal("127.0.0.1", None) is not None
