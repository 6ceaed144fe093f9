"""HTTP client for the gateway's own requests to backends: probes, canaries, models, metrics, GPUs."""

from collections.abc import Mapping
from typing import Any

import httpx2

from gateway.backends.backend import Backend


async def query(
    client: httpx2.AsyncClient, backend: Backend, path: str, *, post: Mapping[str, Any] | None = None
) -> httpx2.Response:
    """GET `path` of a backend, or POST with the arguments that `post` has for httpx2 (`json`, `data`, `files`).

    Sends the backend's key, connects to its address, and uses its service's name as Host. Raises httpx2's errors.
    """
    target = backend.target
    headers = {"Host": target.authority}
    if backend.key:
        headers["Authorization"] = f"Bearer {backend.key}"
    # Certificates are issued for the name, not for a replica's address.
    extensions = {"sni_hostname": target.host} if target.tls else {}
    method = "GET" if post is None else "POST"
    return await client.request(method, target.base_url + path, headers=headers, extensions=extensions, **(post or {}))
