"""The example for Ray Serve: its handler without Ray, and once, slowly, with Ray."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import Response

from fullrank.errors import ArtifactError
from fullrank.serve.app import create_app
from fullrank.serve.engine import Engine
from fullrank.serve.service import Service, ServiceConfig
from tests.serve.conftest import make_artifact, make_log

EXAMPLE = Path(__file__).parent.parent / "examples" / "ray_serve.py"
_found = importlib.util.spec_from_file_location("ray_serve", EXAMPLE)
assert _found
assert _found.loader
ray_serve: Any = importlib.util.module_from_spec(_found)
_found.loader.exec_module(ray_serve)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two artefacts of one log, which score differently."""
    place, log = tmp_path_factory.mktemp("artifacts"), make_log(300)
    for seed in (0, 1):
        make_artifact("dcnv2", log, seed=seed).save(place / str(seed))
    return [place / "0", place / "1"]


def request(path: str, body: bytes = b"", method: str = "POST") -> Request:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    bare, _, query = path.partition("?")
    scope = {
        "type": "http",
        "method": method,
        "path": bare,
        "root_path": "",
        "query_string": query.encode(),
        "headers": [(b"content-type", b"application/json")],
    }
    return Request(scope, receive)


def example(folder: Path) -> dict[str, bytes]:
    made = Engine.load(folder).schema_example()
    return {name: json.dumps(body).encode() for name, body in made.items()}


def test_ray_gets_the_answers_of_fullrank_serve(folders: list[Path]) -> None:
    bodies = example(folders[0])
    asked = [
        ("POST", "/v1/score", bodies["score"]),
        ("POST", "/v1/rank?top=2", bodies["rank"]),
        ("POST", "/v1/rank?top=0", bodies["rank"]),
        ("POST", "/v1/score", b'{"rows": [{"useer": 1}]}'),
        ("POST", "/v1/score", b"{"),
        ("GET", "/v1/model", b""),
        ("GET", "/nowhere", b""),
    ]

    async def both() -> list[tuple[Response, httpx.Response]]:
        ranker = ray_serve.Ranker()
        await ranker.reconfigure({"artifact": str(folders[0])})
        service = Service(ServiceConfig(artifact=folders[0]))
        pairs = []
        async with service.running():
            carrier = httpx.ASGITransport(create_app(service))
            async with httpx.AsyncClient(transport=carrier, base_url="http://x") as client:
                for method, path, body in asked:
                    kind = {"content-type": "application/json"}
                    plain = await client.request(method, path, content=body, headers=kind)
                    pairs.append((await ranker(request(path, body, method)), plain))
        await ranker._running.aclose()
        return pairs

    pairs = asyncio.run(both())
    assert [p.status_code for _, p in pairs] == [200, 200, 422, 422, 400, 200, 404]
    for mine, plain in pairs:
        assert (mine.status_code, bytes(mine.body)) == (plain.status_code, plain.content)
        assert mine.headers["content-type"] == plain.headers["content-type"]


def test_new_settings_swap_the_artefact_and_no_request_is_lost(folders: list[Path]) -> None:
    body = example(folders[0])["score"]
    truth: dict[str, list[float]] = {}
    for folder in folders:
        engine = Engine.load(folder)
        scores = engine.score(engine.encode_rows(json.loads(body)["rows"]))
        truth[engine.fingerprint] = scores["click"].tolist()
    old, new = truth

    async def swap() -> list[Any]:
        ranker = ray_serve.Ranker()
        await ranker.reconfigure({"artifact": str(folders[0])})
        swapping = asyncio.create_task(ranker.reconfigure({"artifact": str(folders[1])}))
        answers = []
        while not swapping.done():
            answers += await asyncio.gather(*(ranker(request("/v1/score", body)) for _ in "abcd"))
        await swapping
        answers.append(await ranker(request("/v1/score", body)))
        await ranker._running.aclose()
        return [(a.status_code, json.loads(bytes(a.body))) for a in answers]

    answers = asyncio.run(swap())
    assert {status for status, _ in answers} == {200}
    assert all(said["scores"]["click"] == truth[said["model"]] for _, said in answers)
    assert (answers[0][1]["model"], answers[-1][1]["model"]) == (old, new)
    assert truth[old] != truth[new]


def test_a_bad_artefact_leaves_the_old_one(folders: list[Path], tmp_path: Path) -> None:
    async def go() -> Response:
        ranker = ray_serve.Ranker()
        with pytest.raises(RuntimeError, match="no artefact"):
            await ranker.check_health()
        await ranker.reconfigure({"artifact": str(folders[0])})
        with pytest.raises(ArtifactError):
            await ranker.reconfigure({"artifact": str(tmp_path)})
        await ranker.check_health()
        answer: Response = await ranker(request("/readyz", method="GET"))
        await ranker._running.aclose()
        return answer

    answer = asyncio.run(go())
    said = json.loads(bytes(answer.body))
    assert said == {"status": "ready", "model": Engine.load(folders[0]).fingerprint}


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="needs Ray: pip install 'ray[serve]'"
)
def test_ray_serves_the_bits_of_the_engine(folders: list[Path]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(EXAMPLE), str(folders[0]), "--port", str(port)]
    server = subprocess.Popen(
        command, start_new_session=True, env={**os.environ, "PYTHONPATH": "."}
    )
    engine = Engine.load(folders[0])
    rows = engine.schema_example()["score"]["rows"]
    try:
        _until_ready(f"http://127.0.0.1:{port}/readyz", server)
        answer = httpx.post(f"http://127.0.0.1:{port}/v1/score", json={"rows": rows})
    finally:
        os.killpg(server.pid, signal.SIGINT)
        try:
            server.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()
    assert answer.status_code == 200
    expected = engine.score(engine.encode_rows(rows))
    assert answer.json()["scores"] == {name: x.tolist() for name, x in expected.items()}


def _until_ready(url: str, server: subprocess.Popen[bytes]) -> None:
    last = ""
    for _ in range(180):
        assert server.poll() is None, "Ray ended before it served"
        try:
            last = str(httpx.get(url).status_code)
            if last == "200":
                return
        except httpx.TransportError as error:
            last = repr(error)
        time.sleep(1)
    raise AssertionError(f"not ready: {last}")
