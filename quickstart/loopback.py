"""HTTP to the cluster's own programs."""

from typing import Any

import httpx2


def client(timeout_s: float, **options: Any) -> httpx2.Client:
    """A client for 127.0.0.1; close it after use. HTTP_PROXY says how to reach the internet, not this machine."""
    return httpx2.Client(trust_env=False, timeout=timeout_s, **options)
