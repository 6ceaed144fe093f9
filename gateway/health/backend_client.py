"""The gateway's own questions to backends (health, models, GPUs, canaries), apart from the relayed requests."""

from collections.abc import Mapping
from typing import Any

import httpx2

from gateway.backends.backend import Backend


async def ask(
    client: httpx2.AsyncClient, backend: Backend, path: str, *, post: Mapping[str, Any] | None = None
) -> httpx2.Response:
    """GET `path` of a backend, or POST with the arguments that `post` gives httpx2 (`json`, `data`, `files`).

    It goes with the backend's key, to its address and under its service's name. Raises httpx2's errors.
    """
    target = backend.target
    headers = {"Host": target.authority}
    if backend.key:
        headers["Authorization"] = f"Bearer {backend.key}"
    # A certificate is made out to the name, not to a replica's address.
    extensions = {"sni_hostname": target.host} if target.tls else {}
    method = "GET" if post is None else "POST"
    return await client.request(method, target.base_url + path, headers=headers, extensions=extensions, **(post or {}))
