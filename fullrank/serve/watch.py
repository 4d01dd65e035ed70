"""Watch: counts and times every request, and gives its id back."""

from __future__ import annotations

import re
from time import perf_counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fullrank.serve.service import Service

_ID = re.compile(rb"[A-Za-z0-9._:-]{1,100}")


class Watched:
    """An ASGI app around an ASGI app.

    Args:
        app: answers.
        service: whose numbers are kept.
        paths: that exist; any other is counted as "other".
    """

    def __init__(self, app: Any, service: Service, paths: tuple[str, ...]) -> None:
        self.app, self.service, self.paths = app, service, frozenset(paths)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answers one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = perf_counter(), 0
        headers = [(b"x-content-type-options", b"nosniff")]
        for name, value in scope["headers"]:
            if name == b"x-request-id" and _ID.fullmatch(value):
                headers.append((b"x-request-id", value))

        async def sending(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message["headers"], *headers]}
            await send(message)

        path = scope["path"] if scope["path"] in self.paths else "other"
        try:
            await self.app(scope, receive, sending)
        finally:
            numbers, seconds = self.service.metrics, perf_counter() - began
            numbers.add("fullrank_requests_total", path=path, status=str(status))
            numbers.observe("fullrank_request_seconds", seconds, path=path)
