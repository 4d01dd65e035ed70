"""Serving a trained artefact over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fullrank.errors import ExtraMissingError
from fullrank.workflow.apply import artifact_folder
from fullrank.workflow.console import console


@contextmanager
def needing_serve(where: str) -> Iterator[None]:
    """Names the extra where a library of the server is not installed."""
    try:
        yield
    except ModuleNotFoundError as cause:
        if cause.name not in ("starlette", "uvicorn", "msgspec", "h11"):
            raise
        raise ExtraMissingError(
            "an optional library is not installed",
            where=where,
            found=str(cause),
            expected="the extra 'serve'",
            fix="pip install 'fullrank[serve]'",
        ) from cause


def serve_command(command: Any) -> dict[str, Any]:
    """Serves until the process is asked to end.

    Args:
        command: of the command line, with the settings of `serve.server.ServerConfig`.

    Raises:
        ExtraMissingError: the libraries of the server are not installed.
        ArtifactError, ConfigError: the artefact is not sound, or a setting is impossible.
    """
    with needing_serve("fullrank serve"):
        from fullrank.serve.server import ServerConfig, serve
    names = [name for name in ServerConfig.__dataclass_fields__ if name != "artifact"]
    settings = {name: getattr(command, name) for name in names}
    config = ServerConfig(artifact=artifact_folder(command.artifact), **settings)

    def announce(text: str) -> None:
        console.print(text, markup=False, soft_wrap=True)

    serve(config, announce)
    return {"served": str(config.artifact)}
