"""Direct: requests that ask for scores skip the search for a route.

The way through Starlette's routes, and the nets for errors around each of them, takes a tenth of
the time of a small request. What is not in the table goes that way, among it every mistake.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeAlias

from starlette.requests import Request
from starlette.responses import Response

from fullrank.errors import FullrankError

Handler: TypeAlias = Callable[[Request], Awaitable[Response]]
Failed: TypeAlias = Callable[[Request, Exception], Awaitable[Response]]


class Direct:
    """An ASGI app around an ASGI app.

    Args:
        app: answers everything else.
        posts: path -> what answers a POST to it.
        failed: answers for an error of ours; any other is left to whoever is further out.
    """

    def __init__(self, app: Any, posts: Mapping[str, Handler], failed: Failed) -> None:
        self.app, self.posts, self.failed = app, posts, failed

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answers one request."""
        posted = scope["type"] == "http" and scope["method"] == "POST"
        handler = self.posts.get(scope["path"]) if posted else None
        if handler is None:
            await self.app(scope, receive, send)
            return
        request = Request(scope, receive, send)
        try:
            answer = await handler(request)
        except FullrankError as error:
            answer = await self.failed(request, error)
        await answer(scope, receive, send)
