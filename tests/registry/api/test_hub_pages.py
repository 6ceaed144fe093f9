"""Hub clients in web pages whose origin is in ALLOWED_ORIGINS: what they may read of each response (CORS)."""

import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from kit.config.catalogue import Catalogue
from registry.download.folder_import import import_folder
from registry.models.library import Library
from registry.store.file_store import FileStore
from tests.registry.conftest import REPO, StoreSettings
from tests.registry.js_clients import FLOWS, INSTALL_S, installed, model_folder, publish
from tests.support import plain_http
from tests.support.hub import serving, serving_registry, small_repo

ORIGIN = "https://chat.example.org"
WITHIN_S = 60.0
MANY_FILES = 1100
# Debian's and others' names of the program.
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
)
# Readable by every page without being exposed: https://fetch.spec.whatwg.org/#cors-safelisted-response-header-name
SAFELISTED = {
    "cache-control",
    "content-language",
    "content-length",
    "content-type",
    "expires",
    "last-modified",
    "pragma",
}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A registry with the small model that admits ORIGIN."""
    home = tmp_path_factory.mktemp("pages")
    library = Library(FileStore(home / "store"), Catalogue([]))
    import_folder(library, small_repo(home / "repo"), name="small", repo=REPO, revision="main")
    with serving_registry(home / "store", allowed_origins=ORIGIN) as served:
        yield served


# Request, status, and the headers of the response that clients use.
RESPONSES: list[tuple[str, str, dict[str, str], int, set[str]]] = [
    ("GET", f"/api/models/{REPO}/tree/main?limit=1", {}, 200, {"link"}),
    ("GET", "/api/models?limit=1", {}, 200, set()),
    ("GET", f"/api/models/{REPO}/commits/main", {}, 200, {"x-total-count"}),
    ("HEAD", f"/{REPO}/resolve/main/config.json", {}, 200, {"etag", "x-repo-commit", "accept-ranges"}),
    ("HEAD", f"/{REPO}/resolve/main/model.safetensors", {}, 200, {"x-linked-size", "x-linked-etag"}),
    ("GET", f"/{REPO}/resolve/main/model.safetensors", {"Range": "bytes=0-0"}, 206, {"content-range", "etag"}),
    ("GET", f"/{REPO}/raw/main/model.safetensors", {"Range": "bytes=0-0"}, 206, {"content-range", "etag"}),
    ("GET", f"/{REPO}/resolve/main/config.json", {"Range": "bytes=999-"}, 416, {"content-range"}),
    ("GET", f"/{REPO}/resolve/main/none", {}, 404, {"x-error-code", "x-error-message", "x-repo-commit"}),
    ("GET", "/api/models/test/none", {}, 404, {"x-error-code", "x-error-message", "x-request-id"}),
    ("GET", "/api/models/Test/Small", {}, 307, set()),
]


@pytest.mark.parametrize(("method", "path", "headers", "status", "used"), RESPONSES)
def test_pages_may_read_the_headers_that_clients_use(
    url: str, method: str, path: str, headers: dict[str, str], status: int, used: set[str]
) -> None:
    """The list is that of huggingface.co."""
    sent = {"Origin": ORIGIN, "Sec-Fetch-Site": "cross-site", **headers}
    answer = plain_http.request(method, url + path, headers=sent, follow_redirects=False)
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (status, ORIGIN)
    assert used <= set(answer.headers)
    exposed = {name.strip().lower() for name in answer.headers["access-control-expose-headers"].split(",")}
    assert used <= exposed | SAFELISTED


@contextmanager
def page_site() -> Iterator[tuple[str, "Results"]]:
    """A web site with the page and the clients; yield its URL and what the page posts."""
    results = Results()
    routes = [
        Route("/result", results.receive, methods=["POST"]),
        Mount("/node_modules", StaticFiles(directory=installed() / "node_modules")),
        Mount("/", StaticFiles(directory=FLOWS)),
    ]
    with serving(Starlette(routes=routes)) as site:
        yield site, results


class Results:
    """The first body posted."""

    def __init__(self) -> None:
        self.found: Any = None
        self.arrived = threading.Event()

    async def receive(self, request: Request) -> Response:
        self.found = json.loads(await request.body())
        self.arrived.set()
        return Response()


@pytest.mark.engines
@pytest.mark.timeout(INSTALL_S + WITHIN_S)
def test_client_in_a_real_browser(store_settings: StoreSettings, tmp_path: Path) -> None:
    """@huggingface/hub in Chromium: all pages of a list, downloads in parts, pointers, errors; on both stores."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip("no Chromium is installed")
    folder = model_folder(tmp_path / "repo")
    (folder / "assets").mkdir()
    for number in range(MANY_FILES):
        (folder / "assets" / f"{number}.txt").touch()
    manifest = publish(folder, store_settings)
    settings = {**store_settings}
    with (
        page_site() as (site, results),
        serving_registry(settings.pop("store"), allowed_origins=site, **settings) as registry,
        subprocess.Popen(
            [
                browser,
                *BROWSER_FLAGS,
                f"--user-data-dir={tmp_path / 'profile'}",
                f"{site}/page.html?registry={registry}",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as process,
    ):
        try:
            assert results.arrived.wait(WITHIN_S), "the page posted no result"
        finally:
            process.terminate()
    data = (folder / "model.safetensors").read_bytes()
    assert results.found == {
        "files": len(manifest.files),
        "info": "text-generation",
        "size": len(data),
        "part": list(data[8:12]),
        "whole": len(data),
        "raw": "version",
        "missing": None,
        "headers": [True] * 5,
        "error": [404, "RepoNotFound", True],
        "redirected": [206, f"bytes 0-0/{(folder / 'config.json').stat().st_size}"],
    }
