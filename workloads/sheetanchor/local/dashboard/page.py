"""The status page: three static files and the JSON that they draw.

The page loads nothing from other origins, and its content security policy forbids it; all data is set as text, never as
markup.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib.resources import files
from typing import Any, Final

from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response

from sheetanchor.local.dashboard.status import Status

FRESH_S: Final = 0.4
"""Several open pages share an answer of this age; too short to be noticed."""

FILES: Final = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}

HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def add_routes(app: FastAPI, status: Callable[[], Status]) -> None:
    """Add the page and `/api/status` to an application.

    Args:
        app: Application of `sheetanchor.web.create_app`.
        status: Gives the status to show.
    """
    kept: list[tuple[float, dict[str, Any]]] = []

    async def status_route() -> JSONResponse:
        now = time.monotonic()
        if not kept or now - kept[0][0] > FRESH_S:
            kept[:] = [(now, status().to_json())]
        return JSONResponse(kept[0][1], headers={"Cache-Control": "no-store"})

    app.add_api_route("/api/status", status_route)
    for path, (name, media_type) in FILES.items():
        app.add_api_route(path, _file_route(name, media_type), methods=["GET", "HEAD"])


def _file_route(name: str, media_type: str) -> Callable[[], Any]:
    body = files("sheetanchor.local.dashboard").joinpath("static", name).read_bytes()

    async def route() -> Response:
        return Response(body, media_type=media_type, headers=HEADERS)

    return route
