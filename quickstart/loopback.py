"""HTTP client for the cluster's programs on this machine."""

from typing import Any

import httpx2


def client(timeout_s: float, **options: Any) -> httpx2.Client:
    """Return a client that ignores HTTP_PROXY; the caller closes it."""
    return httpx2.Client(trust_env=False, timeout=timeout_s, **options)
