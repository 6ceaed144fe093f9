"""`GET /docs`: a self-contained page that renders /openapi.json.

FastAPI's own page loads scripts from a CDN: blank without internet, and a leak to a third party with it.
"""

from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import HTMLResponse

PAGE = Path(__file__).with_suffix(".html")
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"


def add_docs(app: FastAPI) -> None:
    """Add the route to `app`, which has FastAPI's own pages disabled."""
    page = PAGE.read_text(encoding="utf-8")

    async def docs() -> HTMLResponse:
        return HTMLResponse(page, headers={"content-security-policy": POLICY})

    app.add_api_route("/docs", docs, methods=["GET"], include_in_schema=False)
