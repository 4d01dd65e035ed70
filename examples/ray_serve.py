"""A ranker under Ray Serve, for replicas that come and go with the traffic.

    pip install "fullrank[serve]" "ray[serve]"
    python examples/ray_serve.py runs/demo/artifact

`Ranker` has the endpoints of `fullrank serve` and knows nothing of Ray, which calls three of its
methods: `reconfigure` at the start and when the settings of the deployment change, `__call__` for
every request, `check_health` now and then. Ray drains and replaces replicas; an artefact is swapped
by deploying new settings, because POST /v1/reload would reach one replica of many.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from fullrank.serve.app import create_app
from fullrank.serve.service import Service, ServiceConfig

CONCURRENT = 64  # requests that Ray gives to one replica; they share forward passes


class Ranker:
    """One replica: the app of `fullrank serve` around one artefact."""

    def __init__(self) -> None:
        self._service: Service | None = None
        self._app: Any = None
        self._running = AsyncExitStack()

    async def reconfigure(self, settings: Mapping[str, Any]) -> None:
        """Loads, checks and warms an artefact, and swaps it in; requests that run end with the old.

        Args:
            settings: "artifact": its folder, on storage that every node sees.

        Raises:
            ArtifactError: it is not sound; the old one goes on being served.
        """
        config = ServiceConfig(artifact=Path(settings["artifact"]))
        service = await asyncio.to_thread(Service, config)
        running = AsyncExitStack()
        await running.enter_async_context(service.running())
        old, self._running = self._running, running
        self._service, self._app = service, create_app(service)
        await old.aclose()

    async def check_health(self) -> None:
        """Raises where nothing is served, so that Ray replaces the replica."""
        if self._service is None:
            raise RuntimeError("no artefact is loaded")

    async def __call__(self, request: Request) -> Response:
        """Answers one request as `fullrank serve` does."""
        answer = Response()
        parts: list[bytes] = []

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                answer.status_code = message["status"]
                answer.raw_headers = list(message["headers"])
            else:
                parts.append(message.get("body", b""))

        await self._app(request.scope, request.receive, send)
        answer.body = b"".join(parts)
        return answer


def deployment(artifact: Path, least: int = 1, most: int = 8) -> Any:
    """Returns the application for `ray.serve.run`.

    Args:
        artifact: folder of the artefact.
        least: replicas that are always there.
        most: replicas under load.
    """
    from ray import serve

    kind = serve.deployment(
        max_ongoing_requests=CONCURRENT,
        autoscaling_config={
            "min_replicas": least,
            "max_replicas": most,
            "target_ongoing_requests": CONCURRENT // 8,
        },
        ray_actor_options={"num_cpus": 1},
        user_config={"artifact": str(artifact.resolve())},
    )
    return kind(Ranker).bind()


def main() -> None:
    """Serves an artefact on port 8000 until Ctrl-C."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--port", type=int, default=8000)
    asked = parser.parse_args()
    from ray import serve

    serve.start(http_options={"host": "127.0.0.1", "port": asked.port})
    serve.run(deployment(asked.artifact), blocking=True)


if __name__ == "__main__":
    main()
