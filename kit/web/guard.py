"""Access checks: Host and Origin, API keys, the admin token. Pure decisions, usable outside ASGI.

Why Host and Origin: a cluster on localhost has no password by default, and any web page in its user's browser can send
requests to localhost (cross-site, with a foreign `Origin`) or rebind its domain name to 127.0.0.1 (with a foreign
`Host`). See https://owasp.org/www-community/attacks/DNS_Rebinding.
"""

import hmac
import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from urllib.parse import urlsplit

from kit.errors import ApiError, Forbidden, InvalidApiKey

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class BrowserGuard:
    """Check of a request's `Host` and `Origin`.

    `allowed_hosts` are names (a port is ignored) beyond those always allowed: IP addresses and names without a dot
    (localhost, Compose service names), since no public domain can be rebound to either. `.example.org` allows every
    name below it, `*` every name.
    `allowed_origins` are whole origins (`https://chat.example.org`) beyond the request's own, or `*` for every page.
    """

    def __init__(self, allowed_hosts: Iterable[str] = (), allowed_origins: Iterable[str] = ()) -> None:
        self._hosts = {_host_name(host) for host in allowed_hosts}
        self._domains = tuple(host for host in self._hosts if host.startswith("."))
        self._origins = {origin.lower().rstrip("/") for origin in allowed_origins}

    def refusal(self, host: str | None, origin: str | None) -> ApiError | None:
        """Return the error response, or None if the request is allowed."""
        name = _host_name(host or "")
        if not self._allows_host(name):
            return Forbidden(
                f"The Host {host!r} is not allowed here. Add it to ALLOWED_HOSTS if it is yours.",
                code="host_not_allowed",
            )
        if origin is not None and not self._allows_origin(origin.lower(), (host or "").lower()):
            return Forbidden(
                f"Web pages from {origin!r} may not call this server. Add it to ALLOWED_ORIGINS if it is yours.",
                code="origin_not_allowed",
            )
        return None

    def _allows_host(self, name: str) -> bool:
        if "." not in name and ":" not in name:
            return bool(name)
        if name in self._hosts or "*" in self._hosts or name.endswith((*self._domains, ".localhost")):
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    def _allows_origin(self, origin: str, host: str) -> bool:
        if origin in self._origins or "*" in self._origins:
            return True
        try:
            return urlsplit(origin).netloc == host
        except ValueError:
            return False


def may_be_from_foreign_page(headers: Mapping[str, str]) -> bool:
    """Whether a page of another origin may have caused this GET: an `<img>` or a link sends no `Origin`.

    The request has passed BrowserGuard, so one with an `Origin` is from an allowed page. `headers` ignore case.
    Browsers send Sec-Fetch-Site (https://w3c.github.io/webappsec-fetch-metadata/) to https and loopback only; elsewhere
    every browser counts as foreign. `same-site` is foreign, too: it ignores the port.
    """
    if "origin" in headers:
        return False
    site = headers.get("sec-fetch-site")
    return headers.get("user-agent", "").startswith("Mozilla/") if site is None else site not in ("none", "same-origin")


class KeyRing:
    """Bearer keys. An empty ring admits every request."""

    def __init__(self, keys: Iterable[str], *, variable: str) -> None:
        self._keys = [key.encode() for key in keys if key]
        self._variable = variable

    def __bool__(self) -> bool:
        return bool(self._keys)

    def refusal(self, authorization: str | None, api_key: str | None = None) -> ApiError | None:
        """Return a 401, or None if the `Authorization` header has a known key.

        Without that header, `api_key` counts: the `x-api-key` header of Anthropic's clients.
        """
        if not self._keys:
            return None
        key = bearer(authorization) if authorization is not None else api_key
        if key is None:
            return InvalidApiKey(f"Missing API key. Send 'Authorization: Bearer KEY' with a key from {self._variable}.")
        if not any(_same(key, known) for known in self._keys):
            return InvalidApiKey(f"Unknown API key. {self._variable} has the known ones.")
        return None


class AdminGuard:
    """Check of requests that change something: allowed from `trusted` networks, elsewhere by token."""

    def __init__(self, token: str | None, trusted: Sequence[Network]) -> None:
        self._token = token.encode() if token else None
        self._trusted = trusted

    def refusal(self, client: str | None, authorization: str | None) -> ApiError | None:
        """Return the error response, or None if the request is allowed.

        `client` is the peer's address as reported by the socket. None is never trusted: the address of a peer that
        resets its connection right after sending is unknown.
        """
        if client is not None and self._trusts(client):
            return None
        if self._token is None:
            return Forbidden(
                f"Changes from {client or 'an unknown address'} are refused: set ADMIN_TOKEN on the server and send it "
                "as a bearer token, or send the request from the machine itself.",
                code="admin_token_not_set",
            )
        key = bearer(authorization)
        if key is None or not _same(key, self._token):
            return InvalidApiKey("This route changes something: send 'Authorization: Bearer ADMIN_TOKEN'.")
        return None

    def _trusts(self, client: str) -> bool:
        address = address_of(client)
        return address is not None and any(address in network for network in self._trusted)


def address_of(client: str) -> Address | None:
    """Parse a peer's address: without its zone, IPv4-mapped as IPv4; None if invalid."""
    try:
        address = ipaddress.ip_address(client.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        return address.ipv4_mapped
    return address


def bearer(authorization: str | None) -> str | None:
    """Return the token of an `Authorization: Bearer TOKEN` header (scheme in any case), or None."""
    scheme, _, token = (authorization or "").strip().partition(" ")
    return token.strip() or None if scheme.lower() == "bearer" else None


def _same(presented: str, known: bytes) -> bool:
    """Compare in constant time. Encoding as latin-1 restores the bytes that the client sent."""
    return hmac.compare_digest(presented.encode("latin-1", "backslashreplace"), known)


def _host_name(host: str) -> str:
    """Strip the port of a Host header: `[::1]:80` gives `::1`, `localhost:80` gives `localhost`."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    name, colon, port = host.rpartition(":")
    # RFC 3986, 3.2.3: the port may be empty.
    return (name if colon and (not port or port.isdigit()) else host).lower().rstrip(".")
