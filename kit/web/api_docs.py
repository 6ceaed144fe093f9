"""`GET /docs`: a page that draws /openapi.json and needs nothing from anywhere else.

FastAPI's own page loads its scripts from a CDN: where there is no internet it stays blank, and where there is, it tells
a third party who runs this.
"""

from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import HTMLResponse

PAGE = Path(__file__).with_suffix(".html")
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"


def add_docs(app: FastAPI) -> None:
    """Give `app`, made without FastAPI's own pages, the route."""
    page = PAGE.read_text(encoding="utf-8")

    async def docs() -> HTMLResponse:
        return HTMLResponse(page, headers={"content-security-policy": POLICY})

    app.add_api_route("/docs", docs, methods=["GET"], include_in_schema=False)
