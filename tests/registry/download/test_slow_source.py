"""A source that sends a file byte by byte: a cancelled download leaves its place to the next one."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from tests.support import plain_http
from tests.support.hub import serving, serving_registry, wait_for_job, wait_until

COMMIT = "0123456789abcdef0123456789abcdef01234567"
EMPTY_OBJECT = "9e26dfeeb6e641a33dae4961196235bdb965b21b"


class SlowHub:
    """A Hub with `a/good`, and `a/slow`, whose file of `size` bytes would take days."""

    def __init__(self, size: int) -> None:
        self.sent = 0
        self._size = size
        routes = [
            Route("/api/models/{repo:path}/revision/{revision}", self._list),
            Route("/a/good/resolve/{revision}/{path}", self._good),
            Route("/a/slow/resolve/{revision}/{path}", self._slow),
        ]
        self.app = Starlette(routes=routes)

    async def _list(self, request: Request) -> Response:
        sibling: dict[str, Any] = {"rfilename": "data.txt", "size": 2, "blobId": EMPTY_OBJECT}
        if request.path_params["repo"] == "a/slow":
            sibling |= {"size": self._size, "lfs": {"sha256": "a" * 64, "size": self._size}}
        return Response(json.dumps({"sha": COMMIT, "siblings": [sibling]}), media_type="application/json")

    async def _good(self, _: Request) -> Response:
        return Response(b"{}")

    async def _slow(self, request: Request) -> Response:
        start, _, end = request.headers["range"].removeprefix("bytes=").partition("-")
        headers = {
            "Content-Range": f"bytes {start}-{end}/{self._size}",
            "Content-Length": str(int(end) - int(start) + 1),
        }
        return StreamingResponse(self._bytes(), 206, headers)

    async def _bytes(self) -> AsyncIterator[bytes]:
        while True:
            yield b"x"
            self.sent += 1
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("size", [100_000, 200_000_000])
def test_cancelled_download_ends(size: int, tmp_path: Path) -> None:
    """Each byte comes long before the read timeout; the file is one stream, or many parts at once."""
    hub = SlowHub(size)
    with serving(hub.app) as source, serving_registry(tmp_path / "store", hf_endpoint=source, jobs=1) as url:
        plain_http.post(f"{url}/models/slow/download", json={"hf_repo": "a/slow"})
        wait_until(lambda: hub.sent > 3)
        plain_http.delete(f"{url}/models/slow")
        plain_http.post(f"{url}/models/good/download", json={"hf_repo": "a/good"})
        assert wait_for_job(url, "good")["status"] == "ready"
