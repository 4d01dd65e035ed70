"""docs/serving.md: its commands are run on a smaller log, its requests sent, its tables held."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import re
import runpy
import shlex
from collections.abc import Iterator
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

import fullrank.cli as cli
from fullrank.serve import ask, metrics, server
from fullrank.serve.app import create_app
from fullrank.serve.auction import AuctionRules, run_auction
from fullrank.serve.openapi import _STATUS
from fullrank.serve.service import Service, ServiceConfig
from fullrank.serve.shadow import ShadowConfig

PAGE = Path(__file__).parent.parent / "docs" / "serving.md"
BLOCKS: list[tuple[str, str]] = re.findall(r"```(\w+)\n(.*?)```", PAGE.read_text(), re.S)
SMALLER = {"num_rows=100000": "num_rows=3000", "num_users=500": "num_users=60"}


def exchanges() -> list[tuple[list[str], Any]]:
    """Returns (words of a curl command, the answer below it)."""
    return [
        (shlex.split(said), json.loads(answer))
        for (kind, said), (below, answer) in pairwise(BLOCKS)
        if kind == "sh" and said.startswith("curl") and below == "json"
    ]


EXCHANGES = exchanges()
DOCUMENT = ["curl", "-s", "localhost:8000/openapi.json"]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder in which the commands of the page were run, one after the other."""
    place, before = tmp_path_factory.mktemp("shop"), Path.cwd()
    served: list[cli.Serve] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli.Serve, "run", lambda self: served.append(self) or {})
        os.chdir(place)
        try:
            for kind, text in BLOCKS:
                if kind == "python" and text.startswith("# "):
                    Path(text.split()[1]).write_text(text)
                for line in text.splitlines() if kind == "sh" else ():
                    _run(shlex.split(line, comments=True) if "curl" not in text else [])
            yield place
        finally:
            os.chdir(before)
    assert {s.artifact for s in served} == {Path("run")}


def _run(words: list[str]) -> None:
    if words[:1] == ["fullrank"] and "--check" not in words:  # nothing was served yet
        words = [SMALLER.get(word, word) for word in words[1:]]
        more = ["--set", "train.epochs=1"] if words[0] == "train" else []
        assert cli.main([*words, *more]) == 0, words
    elif words[:1] == ["python"] and Path(words[1]).exists():
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            runpy.run_path(words[1])
        assert words[1] != "slots.py" or len(said.getvalue().splitlines()) == 3


@pytest.fixture(scope="module")
def answers(shop: Path) -> list[httpx.Response]:
    """The answers to the page's requests, in their order, and the document of the endpoints."""

    async def ask_all() -> list[httpx.Response]:
        log = ShadowConfig(folder=shop / "shadow", every=1)
        service = Service(ServiceConfig(artifact=shop / "run" / "artifact", shadow=log))
        async with service.running():
            carrier = httpx.ASGITransport(create_app(service))
            async with httpx.AsyncClient(transport=carrier) as client:
                asked = [*(words for words, _ in EXCHANGES), DOCUMENT]
                return [await _send(client, words) for words in asked]

    return asyncio.run(ask_all())


async def _send(client: httpx.AsyncClient, words: list[str]) -> httpx.Response:
    method, body, headers = "GET", None, {}
    assert words[:2] == ["curl", "-s"]
    options = iter(words[3:])
    for name in options:
        value = next(options)
        if name == "-d":
            method, body = "POST", value
        elif name == "-X":
            method = value
        else:
            assert name == "-H"
            key, _, text = value.partition(": ")
            headers[key] = text
    return await client.request(method, f"http://{words[2]}", content=body, headers=headers)


def shape(value: Any) -> Any:
    """Returns what a value is, without its numbers."""
    if isinstance(value, dict):
        return {name: shape(x) for name, x in value.items()}
    if isinstance(value, list):
        return [shape(x) for x in value]
    return type(value).__name__


@pytest.mark.parametrize("place", range(len(EXCHANGES)))
def test_an_answer_has_the_form_that_the_page_shows(
    place: int, answers: list[httpx.Response]
) -> None:
    shown, real = EXCHANGES[place][1], answers[place].json()
    assert shape(shown) == shape(real)
    is_problem = "type" in shown
    assert answers[place].status_code == (shown["status"] if is_problem else 200)
    if is_problem:  # nothing of a problem depends on the numbers of a model
        assert shown == real
        assert answers[place].headers["content-type"] == "application/problem+json"


def test_the_numbers_of_the_page_agree_with_one_another() -> None:
    scored, ranked, sold = (said for _, said in EXCHANGES[1:4])
    asked = EXCHANGES[3][0]
    assert scored["model"] == ranked["model"] == sold["model"]
    for place, chance in zip(ranked["order"], ranked["scores"]["click"], strict=True):
        if place < 2:  # candidates that were scored as rows too
            assert chance == scored["scores"]["click"][place]
    bids = json.loads(asked[asked.index("-d") + 1])["bids_micros"]
    chances = [0.0] * len(bids)
    for award in sold["awards"]:
        chances[award["candidate"]] = award["probability"]
    again = run_auction(bids, chances, AuctionRules(slots=2, reserve_micros=1_000_000))
    assert [a.candidate for a in again] == [a["candidate"] for a in sold["awards"]]
    first, shown = again[0], sold["awards"][0]
    assert (first.price_micros, first.value_micros) == (
        shown["price_micros"],
        shown["value_micros"],
    )
    best = ranked["scores"]["click"]
    assert best == sorted(best, reverse=True)
    [explained] = [said for _, said in EXCHANGES if "tokens" in said]
    assert explained["model"] == scored["model"]
    sizes = [abs(token["change"]) for token in explained["tokens"]]
    assert sizes == sorted(sizes, reverse=True)
    for token in explained["tokens"]:
        less = token["probability_without"] < explained["probability"]
        assert less == (token["change"] < 0)


def rows_of_table(head: str) -> list[list[str]]:
    """Returns the cells of the table that begins with a line."""
    lines = PAGE.read_text().split(f"\n{head}", 1)[1].splitlines()[2:]
    end = next(i for i, line in enumerate(lines) if not line.startswith("|"))
    return [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in lines[:end]]


def test_flags_and_defaults_are_those_of_the_command() -> None:
    real = {
        f"--{f.name.replace('_', '-')}": str(f.default)
        for f in fields(cli.Serve)
        if f.name not in ("artifact", *(g.name for g in fields(cli.Command)))
    }
    shown = {row[0]: row[1] for row in rows_of_table("| flag of")}
    assert shown == real
    assert str(ask._MAX_DEADLINE_MS) in PAGE.read_text()


def test_metrics_are_those_of_the_server() -> None:
    assert [row[0] for row in rows_of_table("| metric |")] == list(metrics._KINDS)


def test_states_are_those_of_the_server() -> None:
    shown = {code for row in rows_of_table("| status |") for code in row[0].split(", ")}
    assert shown == _STATUS.keys() | {"405"}  # a path of the document has its methods


def test_endpoints_are_those_of_the_document(answers: list[httpx.Response]) -> None:
    paths = answers[-1].json()["paths"]
    real = {f"{method.upper()} {path}" for path, of in paths.items() for method in of}
    assert {row[0] for row in rows_of_table("| path |")} == real


def test_what_was_served_replays_as_the_page_says(
    shop: Path, answers: list[httpx.Response], monkeypatch: pytest.MonkeyPatch
) -> None:
    [line] = [x for _, text in BLOCKS for x in text.splitlines() if "--check" in x]
    monkeypatch.chdir(shop)
    assert cli.main(shlex.split(line)[1:]) == 0
    rows = [x for log in (shop / "shadow").iterdir() for x in log.read_text().splitlines()[1:]]
    assert rows
    assert all("user" not in json.loads(row)["raw"] for row in rows)
    assert any("device" in json.loads(row)["raw"] for row in rows)


def test_the_manifest_agrees_with_the_image() -> None:
    [text] = [text for kind, text in BLOCKS if kind == "yaml"]
    pod = yaml.safe_load(text)["spec"]["template"]["spec"]
    [box] = pod["containers"]
    probes = {name: box[f"{name}Probe"]["httpGet"] for name in ("startup", "readiness", "liveness")}
    asked = {name: probe["path"] for name, probe in probes.items()}
    assert asked == {"startup": "/readyz", "readiness": "/readyz", "liveness": "/healthz"}
    assert {probe["port"] for probe in probes.values()} == {server.ServerConfig.port}
    image = (PAGE.parent.parent / "Dockerfile").read_text()
    user = pod["securityContext"]
    assert f"USER {user['runAsUser']}:{user['runAsGroup']}" in image
    assert user["runAsNonRoot"] is True
    assert box["securityContext"]["readOnlyRootFilesystem"] is True
    pause = int(box["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] > pause + server._GRACE_SECONDS
    mounts = {m["name"]: m["mountPath"] for m in box["volumeMounts"]}
    assert mounts.keys() == {v["name"] for v in pod["volumes"]}
    assert f'VOLUME ["{mounts["models"]}"]' in image
