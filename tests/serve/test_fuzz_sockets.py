"""Bytes on the sockets of a real server: broken HTTP, too much of it, too slowly."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from . import sockets, storm
from .conftest import make_artifact, make_log
from .storm import REQUESTS, requests_of
from .test_server import TOKEN, running

BEARER = f"Authorization: Bearer {TOKEN}".encode()


@pytest.fixture(scope="module", autouse=True)
def counted() -> Iterator[None]:
    yield
    storm.tell()


@pytest.fixture(scope="module")
def process(tmp_path_factory) -> Iterator[tuple[int, int, tuple[str, ...], bytes]]:
    """A real server: its process, its port, its secrets, and a body that it answers."""
    folder = tmp_path_factory.mktemp("process")
    make_artifact("dcnv2", make_log(300)).save(folder / "artifact")
    with running(folder) as (process, client):
        model = client.get("/v1/model")
        body = json.dumps(model.json()["example"]["score"]).encode()
        scored = client.post("/v1/score", content=body).content
        assert client.base_url.port is not None
        yield process.pid, client.base_url.port, (str(folder), TOKEN), body
        assert client.get("/v1/model").content == model.content
        assert client.post("/v1/score", content=body).content == scored
        process.terminate()
        said = process.communicate(timeout=60)[0]
        assert "Traceback" not in said
        assert TOKEN not in said


@requests_of(0.12)
@given(st.data())
def test_bytes_on_a_socket_are_answered_or_hung_up_on(process, data):
    _, port, secrets, body = process
    line = data.draw(st.sampled_from([BEARER, b"Authorization: Bearer \xff"]))
    sockets.require_sane(port, data.draw(sockets.hostile_http(body, line)), secrets)


@pytest.mark.parametrize("name", sockets.SMUGGLED)
def test_what_could_be_read_in_two_ways_ends_the_connection(process, name):
    _, port, secrets, _ = process
    assert sockets.require_sane(port, sockets.smuggled(name, BEARER), secrets, quiet=1.0) == [400]


def test_requests_that_follow_one_another_are_all_answered(process):
    _, port, secrets, body = process
    said = sockets.post(body, BEARER) + sockets.chunked(body, BEARER) + sockets.post(body)
    assert sockets.require_sane(port, said * 3, secrets, quiet=1.0) == [200, 200, 401] * 3


def most_memory(pid: int) -> int:
    """Returns the largest memory that a process ever had, in megabytes."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) >> 10


@pytest.mark.parametrize("says_so", [True, False])
def test_a_hundred_megabytes_are_refused_and_not_kept(process, says_so):
    pid, port, secrets, _ = process
    before = most_memory(pid)
    many = b" " * (100 << 20)
    said = sockets.post(many, BEARER) if says_so else sockets.chunked(many, BEARER)
    found = sockets.require_sane(port, said, secrets, quiet=2.0)
    assert found in ([413], [])  # a client that goes on sending may never read what it was told
    assert most_memory(pid) - before < 64
    # one that listens first is told
    head = sockets.post(many, BEARER)[:300] if says_so else said[: 17 << 20]
    assert sockets.require_sane(port, head, secrets, quiet=2.0) == [413]


def test_slow_clients_keep_nobody_waiting_and_are_cut_off(process):
    _, port, secrets, body = process
    said = sockets.post(body, BEARER)
    slow = []
    for i in range(40):
        line = socket.create_connection(("127.0.0.1", port))
        line.sendall(said[: i * len(said) // 40])
        slow.append(line)
    assert sockets.require_sane(port, said, secrets, quiet=1.0) == [200]
    if REQUESTS >= 20_000:  # ten seconds for a head, ten for a body
        time.sleep(21)
        for line in slow:
            line.settimeout(0.5)
            heard = sockets._heard(line, 0.5)
            assert {status for status, _, _ in sockets.answers(heard)} <= {408}
    for line in slow:
        line.close()
