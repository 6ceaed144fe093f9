"""Where the images of requests come from: the request itself, or an address that may be fetched.

Nothing is fetched unless hosts were named. Then a host must be one of them, every address that its name has now must be
a public one or lie in a network that was named, the connection goes to the very address that was checked (a name may
have another one a moment later), and all of it is asked again after each redirect.
"""

import asyncio
import contextlib
import ipaddress
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpx2

from kit.errors import InvalidRequest
from kit.net.dns_lookup import Lookup, NoSuchName, ResolverFailed
from kit.web.guard import Network, address_of
from services.llm.images import MIB, PARAM, ImageLimits, from_data_uri, too_large
from services.llm.options import shown

FETCH_S = 15.0
LOOKUP_S = 5.0
MAX_REDIRECTS = 3
REDIRECTS = frozenset({301, 302, 303, 307, 308})
PORTS = {"http": 80, "https": 443}
# IPv6 addresses that stand for IPv4 ones, private ones too: NAT64 (RFC 6052) and 6to4 (RFC 3056).
BRIDGES = (ipaddress.IPv6Network("64:ff9b::/96"), ipaddress.IPv6Network("2002::/16"))


@dataclass(frozen=True)
class Places:
    """From where images may be fetched: hosts by name (`*.example.org` for all below one), and networks of our own."""

    hosts: Sequence[str] = ()
    networks: Sequence[Network] = ()

    def has_host(self, host: str) -> bool:
        """Whether `host`, in lower case, is one of the names."""
        return any(host == name or (name.startswith("*.") and host.endswith(name[1:])) for name in self.hosts)

    def has_address(self, text: str) -> bool:
        """Whether a connection may be made there: not into this machine, its cloud or its network, unless named."""
        address = address_of(text)
        if address is None:
            return False
        if any(address.version == network.version and address in network for network in self.networks):
            return True
        return address.is_global and not address.is_multicast and not any(address in bridge for bridge in BRIDGES)


class ImageSource:
    """Reads images. One for all requests; on the event loop, where only `read` and `aclose` wait."""

    def __init__(self, limits: ImageLimits, places: Places) -> None:
        self.limits = limits
        self._places = places
        # No proxy, no credentials from a .netrc: what the environment holds is not for addresses out of requests.
        self._http = httpx2.AsyncClient(trust_env=False, follow_redirects=False, timeout=FETCH_S)

    async def read(self, url: str) -> bytes:
        """The bytes of the image at `url`, still encoded.

        Raises InvalidRequest or PayloadTooLarge that says what is wrong and what to do.
        """
        scheme = url.partition(":")[0].lower()
        if scheme == "data":
            return await asyncio.to_thread(from_data_uri, url, self.limits)
        if scheme not in PORTS:
            raise InvalidRequest(
                "image_url must be a data URI: data:image/png;base64,... Nothing else is read.", param=PARAM
            )
        if not self._places.hosts:
            raise _not_allowed(
                "Images by http(s) URL are not fetched from here. Send the image itself as a data URI: "
                "data:image/png;base64,... (IMAGE_HOSTS names hosts that may be asked.)"
            )
        try:
            async with asyncio.timeout(FETCH_S):
                return await self._fetch(url)
        except (TimeoutError, httpx2.TimeoutException) as error:
            raise _failed(url, f"it was not there within {FETCH_S:g} s") from error
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise _failed(url, str(error) or type(error).__name__) from error

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def _fetch(self, url: str) -> bytes:
        asked = url
        for _ in range(MAX_REDIRECTS + 1):
            async with self._open(asked) as answer:
                if answer.status_code in REDIRECTS and "location" in answer.headers:
                    asked = urljoin(asked, answer.headers["location"])
                    continue
                if answer.status_code != 200:
                    raise _failed(url, f"its host answers {answer.status_code}")
                return await self._body(answer)
        raise _failed(url, f"it is redirected more than {MAX_REDIRECTS} times")

    @contextlib.asynccontextmanager
    async def _open(self, url: str) -> AsyncIterator[httpx2.Response]:
        try:
            parts = urlsplit(url)
            host, port = (parts.hostname or "").rstrip("."), parts.port
        except ValueError as error:
            raise _failed(url, str(error)) from error
        if parts.scheme not in PORTS or not self._places.has_host(host):
            raise _not_allowed(
                f"Images are not fetched from {shown(host)}. IMAGE_HOSTS names the hosts that may be asked."
            )
        address = await self._address(url, host)
        target = httpx2.URL(url).copy_with(host=address)
        named = f"[{host}]" if ":" in host else host
        head = {
            "host": named if port in (None, PORTS[parts.scheme]) else f"{named}:{port}",
            "accept": "image/*",
            "accept-encoding": "identity",  # nothing here grows when it is unpacked
        }
        # Certificates are checked against the name, the connection goes to the address.
        extensions: dict[str, Any] = {"sni_hostname": host}
        async with self._http.stream("GET", target, headers=head, extensions=extensions) as answer:
            yield answer

    async def _address(self, url: str, host: str) -> str:
        lookup = Lookup(host)
        try:
            addresses = await lookup.addresses(LOOKUP_S)
        except NoSuchName as error:
            raise _failed(url, f"there is no host {host}") from error
        except ResolverFailed as error:
            raise _failed(url, f"the name {host} cannot be looked up now: {error}") from error
        finally:
            lookup.close()
        if not addresses or not all(self._places.has_address(address) for address in addresses):
            raise _not_allowed(
                f"{host} is in a private network, from which images are not fetched. IMAGE_NETWORKS names networks "
                "that may be asked."
            )
        return addresses[0]

    async def _body(self, answer: httpx2.Response) -> bytes:
        most = self.limits.mb * MIB
        length = answer.headers.get("content-length", "")
        if length.isdigit() and int(length) > most:
            raise too_large(self.limits)
        content = bytearray()
        async for part in answer.aiter_raw():
            content += part
            if len(content) > most:
                raise too_large(self.limits)
        return bytes(content)


def _not_allowed(message: str) -> InvalidRequest:
    return InvalidRequest(message, param=PARAM, code="image_url_not_allowed")


def _failed(url: str, reason: str) -> InvalidRequest:
    return InvalidRequest(
        f"The image at {shown(url)} cannot be fetched: {reason}.", param=PARAM, code="image_url_failed"
    )
