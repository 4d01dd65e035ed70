"""Page: the small web page at `/`, files of this package that ask nobody but this server."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

_TYPES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/server.js": ("server.js", "text/javascript; charset=utf-8"),
    "/parts.js": ("parts.js", "text/javascript; charset=utf-8"),
    "/values.js": ("values.js", "text/javascript; charset=utf-8"),
}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": POLICY,
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def page_endpoints() -> dict[str, Any]:
    """Returns path -> endpoint of every file of the page, read once."""
    folder = files("fullrank.serve") / "page"
    return {
        path: _endpoint((folder / name).read_bytes(), kind) for path, (name, kind) in _TYPES.items()
    }


def _endpoint(content: bytes, kind: str) -> Any:
    async def file(request: Request) -> Response:
        return Response(content, headers={**_HEADERS, "Content-Type": kind})

    return file
