"""`/docs` without internet."""

import re

import httpx2
import pytest

from kit.web.app import DOCS_PAGE
from tests.kit.served import bare_app


@pytest.fixture
async def page() -> httpx2.Response:
    """The page, as a browser gets it."""
    transport = httpx2.ASGITransport(bare_app())
    async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
        return await client.get("/docs")


async def test_page_loads_nothing_external(page: httpx2.Response) -> None:
    """Its policy allows only this server."""
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    assert not re.findall(r"(?:https?:)?//[a-z]", page.text.replace("// ", ""))
    policy = dict(one.strip().split(" ", 1) for one in page.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["connect-src"] == "'self'"
    assert set(re.findall(r"""(?:src|href)="([^"]*)""", page.text)) == {"openapi.json"}


async def test_page_loads_openapi_by_relative_url(page: httpx2.Response) -> None:
    """So that it works behind a path prefix."""
    assert page.text == DOCS_PAGE.read_text(encoding="utf-8")
    assert re.findall(r'fetch\("([^"]*)"\)', page.text) == ["openapi.json"]


async def test_fastapi_pages_are_disabled() -> None:
    """They load scripts from a CDN."""
    transport = httpx2.ASGITransport(bare_app())
    async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
        for path in ("/redoc", "/docs/oauth2-redirect"):
            assert (await client.get(path)).status_code == 404
        assert (await client.get("/openapi.json")).status_code == 200
