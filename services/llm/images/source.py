"""Source of a request's images: data URIs, or URLs on allowed hosts, protected against SSRF.

Nothing is fetched unless IMAGE_HOSTS lists hosts. All addresses of a host must be public or in IMAGE_NETWORKS, the
connection goes to the address that was checked (against DNS rebinding), and redirects are checked in the same way.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpx2

from kit.errors import InvalidRequest
from kit.net.dns_lookup import Lookup, NoSuchName, ResolverFailed
from kit.web.guard import Network
from services.llm.images.decoding import MIB, PARAM, ImageLimits, from_data_uri, too_large
from services.llm.images.public_addresses import is_public, read_address
from services.llm.validation.options import shown

FETCH_S = 15.0
LOOKUP_S = 5.0
MAX_REDIRECTS = 3
REDIRECTS = frozenset({301, 302, 303, 307, 308})
PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True)
class AllowedSources:
    """Hosts (`*.example.org` includes all subdomains) and private networks from which images may be fetched."""

    hosts: Sequence[str] = ()
    networks: Sequence[Network] = ()

    def allows_host(self, host: str) -> bool:
        """Return whether `host`, in lower case, is allowed."""
        return any(host == name or (name.startswith("*.") and host.endswith(name[1:])) for name in self.hosts)

    def allows_address(self, text: str) -> bool:
        """Return whether the address is public or in an allowed network."""
        address = read_address(text)
        if address is None:
            return False
        return is_public(address) or any(
            address.version == network.version and address in network for network in self.networks
        )


class ImageSource:
    """Reader of images, shared by all requests of an event loop."""

    def __init__(self, limits: ImageLimits, allowed: AllowedSources) -> None:
        self.limits = limits
        self._allowed = allowed
        # No proxy and no .netrc: URLs from requests must not use the environment's credentials.
        self._http = httpx2.AsyncClient(trust_env=False, follow_redirects=False, timeout=FETCH_S)

    async def read(self, url: str) -> bytes:
        """Return the encoded image at `url`. Raises InvalidRequest or PayloadTooLarge."""
        scheme = url.partition(":")[0].lower()
        if scheme == "data":
            return await asyncio.to_thread(from_data_uri, url, self.limits)
        if scheme not in PORTS:
            raise InvalidRequest(
                "image_url must be a data URI (data:image/png;base64,...) or an http(s) URL.", param=PARAM
            )
        if not self._allowed.hosts:
            raise _not_allowed(
                "This service does not fetch images by URL. Send a data URI (data:image/png;base64,...), or allow the "
                "host in IMAGE_HOSTS."
            )
        try:
            async with asyncio.timeout(FETCH_S):
                return await self._fetch(url)
        except (TimeoutError, httpx2.TimeoutException) as error:
            raise _failed(url, f"timeout after {FETCH_S:g} s") from error
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise _failed(url, str(error) or type(error).__name__) from error

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def _fetch(self, url: str) -> bytes:
        target = url
        for _ in range(MAX_REDIRECTS + 1):
            async with self._open(target) as response:
                if response.status_code in REDIRECTS and "location" in response.headers:
                    target = urljoin(target, response.headers["location"])
                    continue
                if response.status_code != 200:
                    raise _failed(url, f"status {response.status_code}")
                return await self._body(response)
        raise _failed(url, f"more than {MAX_REDIRECTS} redirects")

    @contextlib.asynccontextmanager
    async def _open(self, url: str) -> AsyncIterator[httpx2.Response]:
        try:
            parts = urlsplit(url)
            host, port = (parts.hostname or "").rstrip("."), parts.port
        except ValueError as error:
            raise _failed(url, str(error)) from error
        if parts.scheme not in PORTS or not self._allowed.allows_host(host):
            raise _not_allowed(f"Images may not be fetched from {shown(host)}. Allow the host in IMAGE_HOSTS.")
        address = await self._address(url, host)
        pinned = httpx2.URL(url).copy_with(host=address)
        authority = f"[{host}]" if ":" in host else host
        head = {
            "host": authority if port in (None, PORTS[parts.scheme]) else f"{authority}:{port}",
            "accept": "image/*",
            "accept-encoding": "identity",  # no decompression bombs
        }
        # Certificates are checked against the host name; the connection goes to the checked address.
        extensions: dict[str, Any] = {"sni_hostname": host}
        async with self._http.stream("GET", pinned, headers=head, extensions=extensions) as response:
            yield response

    async def _address(self, url: str, host: str) -> str:
        lookup = Lookup(host)
        try:
            addresses = await lookup.addresses(LOOKUP_S)
        except NoSuchName as error:
            raise _failed(url, f"unknown host {host}") from error
        except ResolverFailed as error:
            raise _failed(url, f"DNS lookup of {host} failed: {error}") from error
        finally:
            lookup.close()
        if not addresses or not all(self._allowed.allows_address(address) for address in addresses):
            raise _not_allowed(f"{host} is in a private network. Allow the network in IMAGE_NETWORKS.")
        return addresses[0]

    async def _body(self, response: httpx2.Response) -> bytes:
        max_bytes = self.limits.mb * MIB
        length = response.headers.get("content-length", "")
        if length.isdigit() and int(length) > max_bytes:
            raise too_large(self.limits)
        content = bytearray()
        async for part in response.aiter_raw():
            content += part
            if len(content) > max_bytes:
                raise too_large(self.limits)
        return bytes(content)


def _not_allowed(message: str) -> InvalidRequest:
    return InvalidRequest(message, param=PARAM, code="image_url_not_allowed")


def _failed(url: str, reason: str) -> InvalidRequest:
    return InvalidRequest(
        f"The image at {shown(url)} could not be fetched: {reason}.", param=PARAM, code="image_url_failed"
    )
