"""Media: which type a body has, and which its answer is to have."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from fullrank.errors import RequestError
from fullrank.serve import arrow_body, problem

JSON = "application/json"
_ARROW_PATHS = ("/v1/score", "/v1/rank")


def as_json(value: Any) -> Response:
    """Returns an answer in JSON."""
    return Response(msgspec.json.encode(value), media_type=JSON)


def as_arrow(columns: dict[str, Any], model: str) -> Response:
    """Returns an answer as an Arrow stream, whose metadata name the model."""
    return Response(
        arrow_body.write_stream(columns, {"model": model}), media_type=arrow_body.MEDIA_TYPE
    )


def sends_arrow(request: Request) -> bool:
    """Tells whether the body is an Arrow stream."""
    return _kind(request) == arrow_body.MEDIA_TYPE


def wants_arrow(request: Request) -> bool:
    """An answer has the type that is asked for, else that of the request."""
    accepted = request.headers.get("accept", "*/*").lower()
    if arrow_body.MEDIA_TYPE in accepted:
        return True
    return sends_arrow(request) and JSON not in accepted


def require_readable(request: Request) -> None:
    """Refuses a body of a type that its path does not read.

    Raises:
        RequestError: with status 415.
    """
    kind, coding = _kind(request), request.headers.get("content-encoding", "identity")
    arrow = request.url.path in _ARROW_PATHS
    known = (JSON, arrow_body.MEDIA_TYPE) if arrow else (JSON,)
    if kind not in known or coding.lower() != "identity":
        raise RequestError(
            "the body has a type that is not read here",
            status=415,
            where="Content-Type and Content-Encoding",
            found=problem.shown(f"{kind}, {coding}"),
            expected=" or ".join(known) + ", not compressed",
            fix="send one of them",
        )


def _kind(request: Request) -> str:
    return request.headers.get("content-type", JSON).partition(";")[0].strip().lower()
