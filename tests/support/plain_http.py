"""httpx2's one-call functions without TLS: loading the certificates takes longer than most test requests."""

from functools import partial
from typing import Any

import httpx2


def request(method: str, url: str, **options: Any) -> httpx2.Response:
    """Send one request over a new connection."""
    return httpx2.request(method, url, **{"verify": False, "trust_env": False, "timeout": 30.0, **options})


get = partial(request, "GET")
head = partial(request, "HEAD")
post = partial(request, "POST")
delete = partial(request, "DELETE")
