"""The gateway's own questions to backends (health, models, GPUs), apart from the relayed requests."""

import httpx2

from gateway.backends import Backend


async def ask(client: httpx2.AsyncClient, backend: Backend, path: str) -> httpx2.Response:
    """GET `path` of a backend, with its key, at its address and under its service's name. Raises httpx2's errors."""
    target = backend.target
    headers = {"Host": target.authority}
    if backend.key:
        headers["Authorization"] = f"Bearer {backend.key}"
    # A certificate is made out to the name, not to a replica's address.
    extensions = {"sni_hostname": target.host} if target.tls else {}
    return await client.get(target.base_url + path, headers=headers, extensions=extensions)
