"""Headers of requests and responses: validated, and filtered for the other side. Pure.

llhttp rejects most means of request smuggling (repeated lengths, a length beside chunks, bare line feeds, folded
lines); this module rejects the rest. Rules: RFC 9110, 7.6.1 (hop by hop), RFC 9112, 3.2 (Host) and 6 (framing).
"""

import re
from dataclasses import dataclass
from http import HTTPStatus

from kit.errors import ApiError, InvalidRequest

HeaderList = list[tuple[bytes, bytes]]

# Interpreted by the gateway, and not forwarded.
_READ = frozenset({
    b"host", b"content-length", b"transfer-encoding", b"connection", b"expect", b"origin", b"authorization",
    b"x-api-key", b"x-request-id", b"content-encoding",
})  # fmt: skip
# Not forwarded: hop-by-hop headers, credentials, referrers, and headers that the gateway writes itself. Without
# accept-encoding a backend sends uncompressed events, which the gateway can split.
_DROPPED = frozenset({
    b"keep-alive", b"proxy-connection", b"proxy-authorization", b"proxy-authenticate", b"te", b"trailer", b"upgrade",
    b"http2-settings", b"cookie", b"api-key", b"openai-organization", b"openai-project", b"referer", b"forwarded",
    b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto", b"x-real-ip", b"accept-encoding", b"x-served-by",
    b"x-served-model", b"x-queue-ms", b"x-attempts",
})  # fmt: skip
# Headers that identify a conversation: those of other routers, and of Claude Code and Codex. The first one counts.
_SESSIONS = (b"x-session-id", b"x-session-affinity", b"x-claude-code-session-id", b"session-id", b"session_id")
SPECIAL = _READ | _DROPPED
_ONLY_ONCE = (b"host", b"content-length", b"transfer-encoding", b"authorization", b"content-type", b"origin", b"expect")
# RFC 3986, 3.2.2, without the characters that no host in use has.
_HOST = re.compile(rb"(?:[A-Za-z0-9._~%-]+|\[[0-9A-Fa-f:.]+(?:%25[A-Za-z0-9._~-]+)?\])(?::[0-9]{0,5})?\Z")
_ABSOLUTE = re.compile(rb"(?i)https?://([^/?]*)(.*)\Z", re.DOTALL)


@dataclass(slots=True)
class Head:
    """The interpreted headers of a request. `forward` are the header lines for the backend."""

    host: bytes | None = None
    origin: bytes | None = None
    authorization: bytes | None = None
    api_key: bytes | None = None
    request_id: bytes | None = None
    session: bytes = b""
    content_type: bytes = b""
    content_encoding: bytes | None = None
    length: int | None = None
    chunked: bool = False
    expects_continue: bool = False
    forward: bytes = b""

    @property
    def is_repeatable(self) -> bool:
        """Whether the client's next request may have the same head, but for its length."""
        return self.length is not None and self.request_id is None and not self.expects_continue


def read_head(headers: HeaderList, version: str) -> Head:
    """Interpret the headers of a request, names in lower case.

    Raises InvalidRequest for anything that two servers could interpret differently; the connection must be closed then.
    """
    if version not in ("1.1", "1.0"):
        raise InvalidRequest(f"Unsupported HTTP version {version}. Use HTTP/1.1.")
    head = Head()
    read: dict[bytes, bytes] = {}
    forward: HeaderList = []
    for name, value in headers:
        # CGI and WSGI servers do not distinguish Transfer_Encoding from Transfer-Encoding.
        if b"_" in name and name.replace(b"_", b"-") in SPECIAL:
            continue
        if name not in SPECIAL:
            if name == b"content-type":
                if head.content_type:
                    raise _duplicate(name)
                head.content_type = value
            elif name in _SESSIONS:
                head.session = head.session or value
            forward.append((name, value))
        elif name in _READ:
            if name in read:
                if name in _ONLY_ONCE:
                    raise _duplicate(name)
                value = read[name] + b"," + value
            read[name] = value
    _read_framing(head, read, version)
    named = _named(read.get(b"connection", b""))
    if named:
        forward = [(name, value) for name, value in forward if name not in named]
    head.host = read.get(b"host")
    head.origin = read.get(b"origin")
    head.authorization = read.get(b"authorization")
    head.api_key = read.get(b"x-api-key")
    head.request_id = read.get(b"x-request-id")
    head.content_encoding = read.get(b"content-encoding")
    head.forward = b"".join([b"%b: %b\r\n" % header for header in forward])
    return head


def session_of(headers: HeaderList) -> bytes:
    """Return the conversation's key from the headers, names in lower case; usually b""."""
    return next((value for name, value in headers if name in _SESSIONS), b"")


def _read_framing(head: Head, read: dict[bytes, bytes], version: str) -> None:
    host = read.get(b"host")
    if host is None:
        if version == "1.1":
            raise InvalidRequest("The Host header is missing.")
    elif not _HOST.match(host):
        raise InvalidRequest("The Host header is not a valid host.")
    length = read.get(b"content-length")
    coding = read.get(b"transfer-encoding")
    if coding is not None:
        if length is not None:
            raise InvalidRequest("Content-Length and Transfer-Encoding must not be combined.")
        if coding.lower() != b"chunked" or version != "1.1":
            raise InvalidRequest("Unsupported Transfer-Encoding. Only chunked is accepted, in HTTP/1.1.")
        head.chunked = True
    elif length is not None:
        if not length.isdigit() or len(length) > 18:
            raise InvalidRequest("Content-Length is not a valid number.")
        head.length = int(length)
    expect = read.get(b"expect")
    if expect is not None:
        if expect.lower() != b"100-continue":
            raise ApiError(
                "Unsupported Expect header. Only 100-continue is accepted.",
                status=417,
                type="invalid_request_error",
                code="expectation_failed",
            )
        head.expects_continue = version == "1.1"


def _duplicate(name: bytes) -> InvalidRequest:
    return InvalidRequest(f"Duplicate header {name.decode('ascii')}.")


def split_target(target: bytes, host: bytes | None) -> bytes:
    """Return the path of a request target, without its query; `host` is the Host header.

    Absolute targets (`http://host/path`) are accepted (RFC 9112, 3.2.2). Raises InvalidRequest, also if their host
    differs from the header's.
    """
    if b"#" in target:
        raise InvalidRequest("The request target must not have a fragment.")
    if not target.startswith(b"/") and b"://" in target:
        absolute = _ABSOLUTE.match(target)
        if absolute is None or (host or b"").lower() != absolute[1].lower():
            raise InvalidRequest(
                "The host of the request target differs from the Host header, or its scheme is not HTTP."
            )
        target = origin_form(target)
    return target.partition(b"?")[0]


def strip_slash(target: bytes) -> bytes:
    """Return a target in origin form without slashes at the end of its path."""
    path, mark, query = target.partition(b"?")
    return (path.rstrip(b"/") or b"/") + mark + query


def origin_form(target: bytes) -> bytes:
    """Return `http://host/path?query` as `/path?query`, and a target without a host unchanged."""
    absolute = None if target.startswith(b"/") else _ABSOLUTE.match(target)
    if absolute is None:
        return target
    rest: bytes = absolute[2]
    return rest if rest.startswith(b"/") else b"/" + rest


# Response headers that are not forwarded: hop by hop, or written by the gateway itself.
_RESPONSE_DROPPED = frozenset({
    b"connection", b"keep-alive", b"proxy-connection", b"proxy-authenticate", b"te", b"trailer", b"transfer-encoding",
    b"upgrade", b"content-length", b"set-cookie", b"x-served-by", b"x-served-model", b"x-queue-ms", b"x-attempts",
    b"x-request-id", b"access-control-allow-origin", b"access-control-expose-headers",
    b"access-control-allow-credentials",
})  # fmt: skip


def response_headers(headers: HeaderList) -> bytes:
    """Return the header lines of a backend's response that are forwarded; names are in lower case."""
    dropped = _RESPONSE_DROPPED.union(*(_named(value) for name, value in headers if name == b"connection"))
    return b"".join([b"%b: %b\r\n" % header for header in headers if header[0] not in dropped])


def _named(connection: bytes) -> frozenset[bytes]:
    """Return the names that a Connection header lists as hop by hop (RFC 9110, 7.6.1)."""
    if not connection or connection.lower() in (b"keep-alive", b"close"):
        return frozenset()
    return frozenset(token.strip().lower() for token in connection.split(b","))


_STATUS_LINES = {int(status): b"HTTP/1.1 %d %b\r\n" % (status, status.phrase.encode()) for status in HTTPStatus}


def status_line(status: int) -> bytes:
    """Return `HTTP/1.1 200 OK` and its line end."""
    return _STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status
