"""The real server: sockets, slow clients, signals, workers that die."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import polars as pl
import pytest
import uvicorn

from fullrank.errors import ArtifactError, ConfigError
from fullrank.serve import protocol, server
from fullrank.serve.generations import Generations
from fullrank.serve.predictor import Predictor
from fullrank.serve.server import ServerConfig, read_tokens

from .conftest import make_artifact, make_log

ROWS = make_log(20, seed=1).drop("click", "buy")
TOKEN = "0123456789abcdef0123"


def objects(frame: pl.DataFrame) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if v is not None} for row in frame.to_dicts()]


@contextmanager
def running(folder: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], httpx.Client]]:
    """Starts `fullrank serve` on a free port and waits until it is ready."""
    (folder / "tokens").write_text(TOKEN + "\n")
    command = [sys.executable, "-m", "fullrank", "serve", str(folder / "artifact"), "--port", "0"]
    command += ["--token-file", str(folder / "tokens"), "--deadline-ms", "60000", *options]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
        start_new_session=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        lines = []
        while not (found := re.search(r"listening on (http://\S+)", "".join(lines))):
            line = process.stdout.readline()
            assert line, "".join(lines)
            lines.append(line)
        headers = {"Authorization": f"Bearer {TOKEN}"}
        with httpx.Client(base_url=found[1], headers=headers, timeout=60) as client:
            soon(lambda: client.get("/readyz").status_code == 200)
            yield process, client
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # workers outlive a supervisor that is killed
        process.communicate()


def soon(holds: Callable[[], bool]) -> None:
    """Waits until something holds."""
    until = time.monotonic() + 60
    while True:
        try:
            if holds():
                return
        except httpx.TransportError:
            pass
        assert time.monotonic() < until
        time.sleep(0.1)


def scores(client: httpx.Client) -> list[float]:
    answer = client.post("/v1/score", json={"rows": objects(ROWS)})
    assert answer.status_code == 200, answer.text
    return answer.json()["scores"]["click"]


def offline(folder: Path) -> list[float]:
    return Predictor.load(folder / "artifact").score(ROWS)["click"].tolist()


def test_a_server_scores_reloads_and_ends_cleanly(log, tmp_path):
    make_artifact("dcnv2", log).save(tmp_path / "artifact")
    first = offline(tmp_path)
    with running(tmp_path) as (process, client):
        assert scores(client) == first
        make_artifact("dcnv2", log, seed=1).save(tmp_path / "artifact")
        assert scores(client) == first
        assert client.post("/v1/reload").status_code == 200
        second = offline(tmp_path)
        assert scores(client) == second != first
        make_artifact("rankmixer", log).save(tmp_path / "artifact")
        process.send_signal(signal.SIGHUP)
        third = offline(tmp_path)
        soon(lambda: scores(client) == third)
        assert client.post("/v1/score", content=b" " * (17 << 20)).status_code == 413
        assert client.get("/v1/model", headers={"Authorization": "Bearer no"}).status_code == 401
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=30)[0]
        assert process.returncode in (0, -signal.SIGTERM)
        assert "Traceback" not in said
        assert TOKEN not in said


@pytest.mark.slow
def test_workers_agree_and_one_that_is_killed_is_replaced(log, tmp_path):
    make_artifact("dcnv2", log).save(tmp_path / "artifact")
    first = offline(tmp_path)
    with running(tmp_path, "--workers", "2") as (process, client):

        def workers() -> dict[str, str]:
            """Process -> fingerprint."""
            found = re.findall(
                r'model_info{worker="(\d+)",fingerprint="(\w+)"', client.get("/metrics").text
            )
            return dict(found)

        soon(lambda: len(workers()) == 2)
        assert scores(client) == first
        make_artifact("dcnv2", log, seed=1).save(tmp_path / "artifact")
        said = client.post("/v1/reload").json()
        assert (said["workers"], said["switched"]) == (2, 2)
        second = offline(tmp_path)
        for _ in range(20):  # every connection may reach another worker
            with httpx.Client(base_url=client.base_url, headers=client.headers) as other:
                assert scores(other) == second != first
        # What is at the source by now is broken; a worker that is replaced serves what was good.
        (tmp_path / "artifact" / "weights.safetensors").write_bytes(b"broken")
        before = workers()
        os.kill(int(min(before)), signal.SIGKILL)
        soon(lambda: len(workers()) == 2 and set(workers()) != set(before))
        assert set(workers().values()) == {said["model"]}
        refused = client.post("/v1/reload")
        assert refused.status_code == 409
        assert str(tmp_path) not in refused.text
        for _ in range(20):
            with httpx.Client(base_url=client.base_url, headers=client.headers) as other:
                assert scores(other) == second
        make_artifact("rankmixer", log).save(tmp_path / "artifact")
        process.send_signal(signal.SIGHUP)
        third = offline(tmp_path)
        soon(lambda: len(workers()) == 2 and said["model"] not in workers().values())
        assert scores(client) == third
        process.send_signal(signal.SIGTERM)
        output = process.communicate(timeout=60)[0]
        assert "Traceback" not in output
        assert process.returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a service of Linux")
def test_workers_end_with_a_supervisor_that_is_killed(log, tmp_path):
    make_artifact("dcnv2", log).save(tmp_path / "artifact")
    with running(tmp_path, "--workers", "2") as (process, client):
        port = client.base_url.port
        process.kill()
        process.wait()

        def is_free() -> bool:
            with socket.socket() as other:
                other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                return other.connect_ex(("127.0.0.1", port)) != 0

        soon(is_free)


# ---- slow clients


async def nothing(scope: Any, receive: Any, send: Any) -> None:
    """Answers before it has read anything."""
    if scope["type"] == "http":
        await send(
            {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]}
        )
        await send({"type": "http.response.body", "body": b"ok"})  # fmt: skip


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answers with the path and what it has read."""
    said, more = scope["path"].encode() + b" ", True
    while more:
        message = await receive()
        said, more = said + message.get("body", b""), message.get("more_body", False)
    headers = [(b"content-length", str(len(said)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": said})


def talked(
    test: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any], app: Any = nothing
) -> Any:
    """Runs a coroutine with a connection to a server that answers at once."""

    async def run() -> Any:
        listener = server._bound("127.0.0.1", 0)
        config = uvicorn.Config(
            app, http=protocol.PatientProtocol, ws="none", lifespan="off",
            log_level="critical", timeout_keep_alive=1,
        )  # fmt: skip
        running = uvicorn.Server(config)
        serving = asyncio.create_task(running._serve([listener]))
        while not running.started:
            await asyncio.sleep(0.01)
        port = listener.getsockname()[1]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            async with asyncio.timeout(10):
                return await test(reader, writer)
        finally:
            writer.close()
            running.should_exit = True
            await serving

    return asyncio.run(run())


SLOW = {
    "says nothing": (b"", 0, False),
    "half a head": (b"GET / HTTP/1.1\r\nHost: x\r\n", 0, False),
    "drips": (b"G", 0, True),
    "a body nobody reads": (
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nabc",
        1,
        False,
    ),
    "a body that drips": (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 999\r\n\r\n", 1, True),
    "half of a second head": (b"GET / HTTP/1.1\r\nHost: x\r\n\r\nGET / HT", 1, False),
}


@pytest.mark.parametrize(("said", "answers", "drips"), SLOW.values(), ids=SLOW)
def test_a_client_that_is_too_slow_is_cut_off(monkeypatch, said, answers, drips):
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.2)

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        writer.write(said)
        answer = b""
        try:
            if drips:
                answer = await reader.readuntil(b"ok") if answers else b""
                for letter in b"ET /" + b"a" * 200:
                    await asyncio.sleep(0.02)
                    writer.write(bytes([letter]))
                    await writer.drain()
                raise AssertionError("the server listened to the end")
            return await reader.read()  # until the server hangs up
        except ConnectionError:
            return answer

    assert talked(slow).count(b"200 OK") == answers


def test_a_client_that_is_slow_and_steady_enough_is_answered(monkeypatch):
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 1.0)

    async def steady(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        for _ in range(3):  # together longer than one request may take
            writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n")
            await asyncio.sleep(0.45)
            writer.write(b"\r\nabc")
            head = await reader.readuntil(b"ok")
        return head

    assert b"200 OK" in talked(steady)


def heard(said: bytes, app: Any = echo) -> bytes:
    """Returns all that a server answers until it hangs up."""

    def spoken(port: int) -> bytes:
        answer = b""
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            with contextlib.suppress(ConnectionError):  # it may hang up before it has read all
                connection.sendall(said)
            with contextlib.suppress(ConnectionError):
                while chunk := connection.recv(1 << 16):
                    answer += chunk
        return answer

    async def odd(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        return await asyncio.to_thread(spoken, writer.get_extra_info("peername")[1])

    answer: bytes = talked(odd, app)
    return answer


POST = b"POST /a HTTP/1.1\r\nHost: x\r\n"
NO_HTTP = {
    "TLS": b"\x16\x03\x01\x02\x00\r\n\r\n",
    "no path": b"GET\r\n\r\n",
    "a long method": b"x" * 100_000 + b"\r\n\r\n",
    "a long path": b"GET /" + b"x" * 400_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    "a long header": b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 400_000 + b"\r\n\r\n",
    "many headers": b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 20_000 + b"\r\n",
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "two hosts": b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
    "another version": b"GET / HTTP/2.0\r\nHost: x\r\n\r\n",
    "no version": b"GET /\r\n\r\n",
    "a tunnel": b"CONNECT x:443 HTTP/1.1\r\nHost: x\r\n\r\n",
    "bare line feeds": b"GET / HTTP/1.1\nHost: x\n\n",
    "a folded header": b"GET / HTTP/1.1\r\nHost: x\r\nX: y\r\n z\r\n\r\n",
    "two lengths": POST + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
    "a length and chunks": POST
    + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a signed length": POST + b"Content-Length: +3\r\n\r\nabc",
    "an odd coding": POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "a broken chunk": POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    "endless trailers": POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\n" + b"X: y\r\n" * 100_000,
}


@pytest.mark.parametrize("said", NO_HTTP.values(), ids=NO_HTTP)
def test_what_is_no_http_is_answered_with_a_problem(said):
    head, _, body = heard(said).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400")
    assert b"application/problem+json" in head
    assert json.loads(body)["status"] == 400


def test_a_request_before_the_noise_keeps_its_answer():
    said = POST + b"Content-Length: 3\r\n\r\nabc"
    for noise in (b"\x16\x03", b"GET / HTTP/1.1\r\n\r\n"):
        answer = heard(said + noise)
        assert answer.endswith(b"/a abc")
        assert answer.count(b"HTTP/1.1 ") == 1  # a 400 would be taken for the answer to a request
    two = heard(said + said.replace(b"/a", b"/b") + b"\x16\x03")
    assert two.count(b"200 OK") == 2
    assert two.endswith(b"/b abc")


def test_more_requests_than_wait_on_one_connection_are_not_read(monkeypatch):
    monkeypatch.setattr(protocol, "MOST_WAITING", 5)
    said = b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n"
    assert heard(said * 5 + b"\x16").count(b"200 OK") == 5
    assert heard(said * 50).count(b"200 OK") < 50


@pytest.mark.parametrize(
    "framed",
    [
        b"Content-Length: 6\r\n\r\nabcdef",
        b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n3\r\ndef\r\n0\r\n\r\n",
    ],
)
def test_a_client_that_offers_another_protocol_is_answered_in_this_one(framed):
    offer = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAA\r\n"

    said = POST + offer + framed

    def slowly(step: int) -> bytes:
        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
            for place in range(0, len(said), step):
                writer.write(said[place : place + step])
                await writer.drain()
                await asyncio.sleep(0)
            return await reader.read()

        answer: bytes = talked(talk, echo)
        return answer

    for step in (3, 1000):
        assert slowly(step).endswith(b"\r\n\r\n/a abcdef")
    twice = heard(said + said)  # the first is the last of its connection
    assert twice.endswith(b"\r\n\r\n/a abcdef")
    assert twice.count(b"HTTP/1.1 ") == 1
    assert heard(POST + offer + b"\r\n").endswith(b"\r\n\r\n/a ")


def test_the_end_of_a_body_adds_nothing_to_the_head():
    said = POST + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-Late: y\r\n\r\n\x16"
    seen = []

    async def noted(scope: Any, receive: Any, send: Any) -> None:
        await echo(scope, receive, send)
        seen.extend(name for name, _ in scope["headers"])

    assert heard(said, noted).endswith(b"/a abc")
    assert seen == [b"host", b"transfer-encoding"]


def test_answers_do_not_wait_for_an_acknowledgement(monkeypatch):
    delays = []
    connected = protocol.PatientProtocol.connection_made

    def noted(self: protocol.PatientProtocol, transport: Any) -> None:
        connected(self, transport)
        option = transport.get_extra_info("socket").getsockopt
        delays.append(not option(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    monkeypatch.setattr(protocol.PatientProtocol, "connection_made", noted)
    heard(b"\x16\x03")
    assert set(delays) == {False}


# ---- settings


@pytest.mark.parametrize("text", ["", "\n\n", "short", "0123456789abcdef\nshort"])
def test_a_token_that_could_be_guessed_is_refused(tmp_path, text):
    (tmp_path / "tokens").write_text(text)
    with pytest.raises(ConfigError):
        read_tokens(tmp_path / "tokens")


def test_tokens_are_kept_as_digests(tmp_path):
    (tmp_path / "tokens").write_text(f"{TOKEN}\n\n{TOKEN}x\n")
    tokens = read_tokens(tmp_path / "tokens")
    assert len(tokens) == 2
    assert TOKEN.encode() not in b"".join(tokens)
    assert read_tokens(None) == ()
    with pytest.raises(ConfigError):
        read_tokens(tmp_path / "nothing")


@pytest.mark.parametrize(
    "setting",
    [{"workers": 0}, {"max_rows": 0}, {"deadline_ms": 0.0}, {"max_wait_ms": -1.0}, {"port": 70000}],
)
def test_impossible_settings_are_refused(tmp_path, setting):
    with pytest.raises(ConfigError):
        ServerConfig(artifact=tmp_path, **setting)


def test_workers_follow_a_link_to_the_artefact_that_it_points_to_by_then(tmp_path):
    (tmp_path / "current").symlink_to(tmp_path / "first")
    told = json.loads(server._to_json(ServerConfig(artifact=tmp_path / "current"), tmp_path))
    assert Path(told["artifact"]) == tmp_path / "current"


def test_an_address_that_is_taken_is_named():
    with server._bound("127.0.0.1", 0) as listener:
        listener.listen()
        with pytest.raises(ConfigError) as caught:
            server._bound("127.0.0.1", listener.getsockname()[1])
    assert "--port" in caught.value.where


# ---- generations


def test_a_generation_is_a_copy_that_stays(log, tmp_path):
    folder, source = Generations(tmp_path / "shared"), tmp_path / "artifact"
    folder.folder.mkdir()
    names = []
    for seed in range(4):
        make_artifact("dcnv2", log, seed=seed, assets=seed == 3).save(source)
        fingerprint = json.loads((source / "artifact.json").read_text())["fingerprint"]
        names.append(folder.keep(source, fingerprint))
        folder.publish(names[-1])
    expected = Predictor.load(source).score(ROWS)["click"]
    assert folder.current() == names[-1]
    assert sorted(p.name for p in folder.folder.glob("g-*")) == names[-2:]
    (source / "weights.safetensors").write_bytes(b"broken")
    kept = Predictor.load(folder.path(folder.current())).score(ROWS)["click"]
    assert kept.tolist() == expected.tolist()


def test_an_artefact_that_changes_while_it_is_copied_is_refused(log, tmp_path):
    make_artifact("dcnv2", log).save(tmp_path / "artifact")
    with pytest.raises(ArtifactError):
        Generations(tmp_path).keep(tmp_path / "artifact", "another fingerprint")
    assert not list(tmp_path.glob("g-*"))


def test_only_workers_that_live_have_a_say(tmp_path):
    folder = Generations(tmp_path)
    folder.report({"generation": "g", "metrics": {}})
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / f"worker-{dead.pid}.json").write_text("{}")
    (tmp_path / "worker-odd.json").write_text("{}")
    assert folder.reports() == {str(os.getpid()): {"generation": "g", "metrics": {}}}
    folder.forget()
    assert folder.reports() == {}
