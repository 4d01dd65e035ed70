"""Problem details: every answer that is no success, as RFC 9457 and in five parts.

Nothing of the server's own is echoed: no folder, no token, no traceback; of the input at most 100
characters.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from fullrank.errors import (
    ArtifactError,
    AuctionError,
    BatchError,
    ConfigError,
    DataFormatError,
    EmptyInputError,
    ExtraMissingError,
    FullrankError,
    LabelError,
    OverloadedError,
    RequestError,
    SchemaError,
    UnknownNameError,
)

MEDIA_TYPE = "application/problem+json"
MOST_INPUT = 100  # characters of a request that an answer may repeat
_MOST_TEXT = 400
_INPUT_ERRORS = (
    AuctionError,
    SchemaError,
    DataFormatError,
    EmptyInputError,
    LabelError,
    BatchError,
)
_STATE_ERRORS = (ArtifactError, ConfigError, ExtraMissingError, UnknownNameError)
_FOLDERS = re.compile(r"(?:[A-Za-z]:)?(?:[\\/][^\\/\s'\":,;()]+)+[\\/]")


def status_of(error: FullrankError) -> int:
    """Returns the HTTP status of an error."""
    if isinstance(error, RequestError):
        return error.status
    if isinstance(error, OverloadedError):
        return 429
    if isinstance(error, _INPUT_ERRORS):
        return 422
    return 409 if isinstance(error, _STATE_ERRORS) else 500


def problem(error: FullrankError, hidden: tuple[str, ...] = ()) -> dict[str, Any]:
    """Returns the members of a problem.

    Args:
        error: what went wrong.
        hidden: texts that must not be shown, such as the folder of the artefact.
    """
    status = status_of(error)
    parts = {k: v or "(empty)" for k, v in error.to_dict().items() if k != "error"}
    for text in hidden:
        parts = {k: v.replace(text, "...") for k, v in parts.items()}
    if not isinstance(error, RequestError):  # its parts were written for whoever asks
        parts = {k: _FOLDERS.sub("", v) for k, v in parts.items()}
    what, where = parts.pop("what"), shown(parts.pop("where"), _MOST_TEXT)
    return {
        "type": f"urn:fullrank:{type(error).__name__}",
        "title": shown(what, _MOST_TEXT),
        "status": status,
        "detail": shown(f"{what}; {where}: {shown(parts['found'])}", _MOST_TEXT),
        "where": where,
        "found": shown(parts["found"]),
        "expected": shown(parts["expected"], _MOST_TEXT),
        "fix": shown(parts["fix"], _MOST_TEXT),
    }


def problem_body(members: Mapping[str, Any]) -> bytes:
    """Returns a problem as JSON."""
    return msgspec.json.encode(members)


def shown(text: object, most: int = MOST_INPUT) -> str:
    """Returns text that is safe to show: on one line, printable, cut where it is long."""
    plain = "".join(c if c.isprintable() else "?" for c in str(text)[: most + 1])
    return plain if len(plain) <= most else plain[: most - 3] + "..."
