"""Ask: what comes with a request besides its rows: token, query and the body's size and pace."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import Sequence
from typing import TYPE_CHECKING

from starlette.requests import ClientDisconnect, Request

from fullrank.errors import OverloadedError, RequestError, nearest
from fullrank.serve.problem import shown

if TYPE_CHECKING:
    from fullrank.serve.service import Service

_MAX_DEADLINE_MS = 60_000


class Query:
    """The query of a request, its names and values checked.

    Args:
        request: as it came.
        names: that this path knows.

    Raises:
        RequestError: a name is not known, or stands twice.
    """

    def __init__(self, request: Request, names: Sequence[str]) -> None:
        self._values: dict[str, str] = {}
        self._began = asyncio.get_running_loop().time()
        for name, value in request.query_params.multi_items():
            if name not in names or name in self._values:
                known = name in names
                raise RequestError(
                    "a query parameter stands twice" if known else "a query parameter is not known",
                    where="the query",
                    found=shown(name),
                    expected=", ".join(names) or "no query",
                    fix="leave one out" if known else nearest(name[:100], names),
                )
            self._values[name] = value

    def choice(self, name: str, options: Sequence[str]) -> str:
        """Returns one of the options, the first where the query does not say."""
        value = self._values.get(name, options[0])
        if value not in options:
            raise _wrong(name, value, "one of: " + ", ".join(options))
        return value

    def whole(self, name: str, least: int, most: int, default: int) -> int:
        """Returns a whole number between bounds, both included."""
        text = self._values.get(name, str(default))
        # trap: isdecimal alone accepts the digits of every script
        if not (text.isascii() and text.isdecimal() and len(text) <= 19):
            raise _wrong(name, text, f"a whole number from {least} to {most}")
        if not least <= int(text) <= most:
            raise _wrong(name, text, f"a whole number from {least} to {most}")
        return int(text)

    def says(self, name: str) -> bool:
        """Tells whether the query has a parameter."""
        return name in self._values

    def deadline(self, default_ms: float) -> float:
        """Returns when the answer is due, by the clock of the event loop."""
        if "deadline_ms" not in self._values:
            return self._began + default_ms / 1e3
        return self._began + self.whole("deadline_ms", 1, _MAX_DEADLINE_MS, 1) / 1e3


def digest(token: bytes) -> bytes:
    """Returns what is kept of a token; digests have one length, so comparing tells nothing."""
    return hashlib.sha256(token).digest()


def require_token(request: Request, tokens: Sequence[bytes]) -> None:
    """Refuses a request without one of the tokens, given as digests; none means that all may ask.

    Raises:
        RequestError: with status 401; it does not say how far a token was right.
    """
    if not tokens:
        return
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    mine = digest(token.strip().encode("latin-1"))
    right = [hmac.compare_digest(mine, other) for other in tokens]  # all of them, every time
    if scheme.lower() != "bearer" or not any(right):
        raise RequestError(
            "the request carries no valid token",
            status=401,
            where="Authorization",
            found="a token that is not known" if token else "no token",
            expected="Authorization: Bearer TOKEN",
            fix="use a token of the server's token file",
        )


async def read_body(request: Request, service: Service) -> bytes:
    """Reads a body of bounded size in bounded time.

    Raises:
        RequestError: it is too large (413), or came too slowly or not at all (408).
        OverloadedError: other bodies fill the memory that bodies may take.
    """
    limits = service.limits
    declared = request.headers.get("content-length", "0")
    if declared.isascii() and declared.isdecimal() and int(declared[:20]) > limits.max_body_bytes:
        raise _too_large(limits.max_body_bytes, f"{int(declared[:20]):,} bytes")
    parts, size = [], 0
    try:
        async with asyncio.timeout(limits.body_seconds):
            async for chunk in request.stream():
                size += len(chunk)
                service.buffered += len(chunk)
                if size > limits.max_body_bytes:
                    raise _too_large(limits.max_body_bytes, f"{size:,} bytes or more")
                if service.buffered > limits.buffered_bytes:
                    raise _no_memory(service.buffered)
                parts.append(chunk)
    except (TimeoutError, ClientDisconnect) as cause:
        raise RequestError(
            "the body did not arrive in time",
            status=408,
            where="the body",
            found=f"{size:,} bytes",
            expected=f"all of it within {limits.body_seconds:g} s",
            fix="send it faster, or in smaller requests",
        ) from cause
    finally:
        service.buffered -= size
    return b"".join(parts)


def _too_large(most: int, found: str) -> RequestError:
    return RequestError(
        "the body is too large",
        status=413,
        where="the body",
        found=found,
        expected=f"at most {most:,} bytes",
        fix="split the request, or start the server with --max-body-mb",
    )


def _no_memory(held: int) -> OverloadedError:
    return OverloadedError(
        "the server is reading too many bodies",
        where="the body",
        found=f"{held:,} bytes of all requests together",
        expected="fewer",
        fix="ask again later",
    )


def _wrong(name: str, value: str, expected: str) -> RequestError:
    return RequestError(
        "a query parameter has an impossible value",
        where=f"the query, {name}",
        found=shown(value),
        expected=expected,
        fix="correct it, or leave it out",
    )
