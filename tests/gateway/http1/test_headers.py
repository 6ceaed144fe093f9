"""Validation of request heads, and filtering of headers."""

import pytest

from gateway.http1.headers import Head, origin_form, read_head, response_headers, split_target
from kit.errors import ApiError


def read(*extra: tuple[bytes, bytes], version: str = "1.1") -> Head:
    return read_head([(b"host", b"x"), *extra], version)


@pytest.mark.parametrize(
    ("headers", "version"),
    [
        ([], "1.1"),
        ([(b"host", b"a"), (b"host", b"a")], "1.1"),
        ([(b"host", b"")], "1.1"),
        ([(b"host", b"a b")], "1.1"),
        ([(b"host", b"a,b")], "1.1"),
        ([(b"host", b"user@a")], "1.1"),
        ([(b"host", b"a/b")], "1.1"),
        ([(b"host", b"\xc3\xa9")], "1.1"),
        ([(b"host", b"a"), (b"content-length", b"1"), (b"content-length", b"1")], "1.1"),
        ([(b"host", b"a"), (b"content-length", b"+1")], "1.1"),
        ([(b"host", b"a"), (b"content-length", b"-1")], "1.1"),
        ([(b"host", b"a"), (b"content-length", b"1_0")], "1.1"),
        ([(b"host", b"a"), (b"content-length", b"9" * 30)], "1.1"),
        ([(b"host", b"a"), (b"content-length", b"\xb2")], "1.1"),
        ([(b"host", b"a"), (b"content-length", b"1"), (b"transfer-encoding", b"chunked")], "1.1"),
        ([(b"host", b"a"), (b"transfer-encoding", b"gzip, chunked")], "1.1"),
        ([(b"host", b"a"), (b"transfer-encoding", b"chunked, chunked")], "1.1"),
        ([(b"host", b"a"), (b"transfer-encoding", b"identity")], "1.1"),
        ([(b"host", b"a"), (b"transfer-encoding", b"chunked"), (b"transfer-encoding", b"chunked")], "1.1"),
        ([(b"host", b"a"), (b"transfer-encoding", b"chunked")], "1.0"),
        ([(b"host", b"a"), (b"content-type", b"a/b"), (b"content-type", b"a/b")], "1.1"),
        ([(b"host", b"a"), (b"authorization", b"Bearer a"), (b"authorization", b"Bearer b")], "1.1"),
        ([(b"host", b"a"), (b"origin", b"http://a"), (b"origin", b"http://b")], "1.1"),
        ([(b"host", b"a"), (b"expect", b"the-unexpected")], "1.1"),
        ([(b"host", b"a")], "2.0"),
        ([(b"host", b"a")], "0.9"),
    ],
)
def test_ambiguous_heads_are_rejected(headers: list[tuple[bytes, bytes]], version: str) -> None:
    with pytest.raises(ApiError):
        read_head(headers, version)


@pytest.mark.parametrize(
    "name",
    [
        "host", "content-length", "authorization", "cookie", "x-api-key", "api-key", "proxy-authorization", "te",
        "keep-alive", "proxy-connection", "upgrade", "trailer", "expect", "accept-encoding", "origin", "referer",
        "x-served-by", "x-served-model", "x-queue-ms", "x-attempts", "x-request-id", "x-forwarded-for", "forwarded",
        "openai-organization", "openai-project",
    ],
)  # fmt: skip
def test_header_is_not_forwarded(name: str) -> None:
    """Hop-by-hop headers, credentials, headers that the gateway sets."""
    values = {"expect": b"100-continue", "content-length": b"5"}
    header = (name.encode(), values.get(name, b"secret"))
    head = read_head([header] if name == "host" else [(b"host", b"x"), header], "1.1")
    assert name.encode() not in head.forward
    assert b"secret" not in head.forward


def test_end_to_end_headers_are_forwarded_unchanged() -> None:
    """Repeated ones in their order."""
    head = read((b"x-a", b"1"), (b"accept", b"*/*"), (b"x-a", b"2"), (b"content-type", b"application/json"))
    assert head.forward == b"x-a: 1\r\naccept: */*\r\nx-a: 2\r\ncontent-type: application/json\r\n"


@pytest.mark.parametrize("connection", [b"close, X-Hop", b"x-hop", b"keep-alive,x-hop ,te"])
def test_headers_named_in_connection_are_dropped(connection: bytes) -> None:
    head = read((b"connection", connection), (b"x-hop", b"1"), (b"x-end", b"2"))
    assert head.forward == b"x-end: 2\r\n"


def test_several_connection_headers_are_combined() -> None:
    head = read((b"connection", b"x-a"), (b"connection", b"x-b"), (b"x-a", b"1"), (b"x-b", b"1"), (b"x-c", b"1"))
    assert head.forward == b"x-c: 1\r\n"


@pytest.mark.parametrize(
    ("target", "path", "origin"),
    [
        (b"/v1/models", b"/v1/models", b"/v1/models"),
        (b"https://h:1", b"/", b"/"),
        (b"http://h:1?a", b"/", b"/?a"),
        (b"/v1/models?a=b?c", b"/v1/models", b"/v1/models?a=b?c"),
        (b"http://h:1/v1/models?a", b"/v1/models", b"/v1/models?a"),
        (b"HTTP://H:1/", b"/", b"/"),
        (b"/a?u=http://b", b"/a", b"/a?u=http://b"),
    ],
)
def test_path_of_origin_and_absolute_targets(target: bytes, path: bytes, origin: bytes) -> None:
    assert split_target(target, b"h:1") == path
    assert origin_form(target) == origin


def test_response_headers_are_filtered() -> None:
    """A backend cannot set our headers, cookies or hop-by-hop headers."""
    headers = [
        (b"content-type", b"a/b"),
        (b"connection", b"close"),
        (b"transfer-encoding", b"chunked"),
        (b"x-served-by", b"forged"),
        (b"x-request-id", b"forged"),
        (b"set-cookie", b"a=b"),
        (b"x-other", b"1"),
    ]
    assert response_headers(headers) == b"content-type: a/b\r\nx-other: 1\r\n"


def test_response_headers_named_in_connection_are_dropped() -> None:
    headers = [(b"connection", b"Keep-Alive, X-Hop"), (b"x-hop", b"1"), (b"x-end", b"2"), (b"connection", b"x-two")]
    assert response_headers([*headers, (b"x-two", b"3")]) == b"x-end: 2\r\n"
