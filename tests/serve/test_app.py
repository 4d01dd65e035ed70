"""The endpoints, in process: right answers, refusals in five parts, and swaps that drop nothing."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import json
import logging
import re
import signal
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from fullrank.errors import RequestError
from fullrank.serve import arrow_body
from fullrank.serve.app import create_app
from fullrank.serve.artifact import read_manifest
from fullrank.serve.ask import digest
from fullrank.serve.auction import AuctionRules, run_auction
from fullrank.serve.block_sizes import Blocks
from fullrank.serve.engine import Engine
from fullrank.serve.generations import Generations
from fullrank.serve.pipeline import Pipeline, Retrieval
from fullrank.serve.predictor import Predictor
from fullrank.serve.replay import Log, Replay
from fullrank.serve.retrieval import ItemIndex
from fullrank.serve.service import Limits, Service, ServiceConfig
from fullrank.serve.shadow import ShadowConfig, log_files
from fullrank.workflow.replay import check_command

from . import catalogue
from .conftest import make_artifact, make_log

ROWS = make_log(40, seed=1).drop("click", "buy")
TOKEN = "0123456789abcdef-secret"
AUTHORISED = {"Authorization": f"Bearer {TOKEN}"}
ARROW = {"Content-Type": arrow_body.MEDIA_TYPE}
Test = Callable[[httpx.AsyncClient, Service], Any]


@pytest.fixture(scope="module")
def folder(log, tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("served") / "artifact"
    make_artifact("dcnv2", log).save(place)
    return place


@pytest.fixture(autouse=True)
def loaded_once(monkeypatch) -> None:
    """Trying block sizes takes most of the time that a small engine takes to load."""
    monkeypatch.setattr(
        "fullrank.serve.engine.try_blocks", lambda score, schema: Blocks({64: 1e-4}, True)
    )


@pytest.fixture(scope="module")
def predictor(folder) -> Predictor:
    return Predictor.load(folder)


def objects(frame: pl.DataFrame) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if v is not None} for row in frame.to_dicts()]


def served(
    folder: Path,
    test: Test,
    *,
    tokens: tuple[str, ...] = (),
    shadow: ShadowConfig | None = None,
    **limits: Any,
) -> Any:
    """Runs a coroutine with a client of a service."""

    async def run() -> Any:
        patient = {"deadline_ms": 60_000.0} | limits  # whatever else this machine does
        config = ServiceConfig(artifact=folder, limits=Limits(**patient), shadow=shadow)
        service = Service(config, tuple(digest(t.encode()) for t in tokens))
        transport = httpx.ASGITransport(create_app(service), raise_app_exceptions=False)
        async with (
            service.running(),
            httpx.AsyncClient(transport=transport, base_url="http://t") as client,
        ):
            return await test(client, service)  # fmt: skip

    return asyncio.run(run())


def asked(folder: Path, *requests: httpx.Request, **settings: Any) -> list[httpx.Response]:
    async def ask(client: httpx.AsyncClient, service: Service) -> list[httpx.Response]:
        return [await client.send(request) for request in requests]

    return served(folder, ask, **settings)


def post(path: str, content: Any, **headers: str) -> httpx.Request:
    """A request; what is not bytes is sent as JSON."""
    if not isinstance(content, bytes):
        content = json.dumps(content).encode()
        headers = {"Content-Type": "application/json"} | headers
    return httpx.Request("POST", f"http://t{path}", content=content, headers=headers)


def get(path: str, method: str = "GET", **headers: str) -> httpx.Request:
    return httpx.Request(method, f"http://t{path}", headers=headers)


def stream(frame: pl.DataFrame) -> bytes:
    sink = pa.BufferOutputStream()
    table = frame.to_arrow()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def is_problem(answer: httpx.Response, status: int) -> bool:
    members = answer.json()
    parts = ("type", "title", "detail", "where", "found", "expected", "fix")
    return (
        answer.status_code == status == members["status"]
        and answer.headers["content-type"] == "application/problem+json"
        and all(isinstance(members[p], str) and members[p] for p in parts)
        and "Traceback" not in answer.text
    )


# ---- answers


def test_scores_are_those_of_the_predictor_to_the_bit(folder, predictor):
    expected = predictor.score(ROWS)
    plain, arrow, asked_arrow, asked_json = asked(
        folder,
        post("/v1/score", {"rows": objects(ROWS)}),
        post("/v1/score", stream(ROWS), **ARROW),
        post("/v1/score", {"rows": objects(ROWS)}, Accept=arrow_body.MEDIA_TYPE),
        post("/v1/score", stream(ROWS), Accept="application/json", **ARROW),
    )
    for answer in (plain, asked_json):
        assert answer.status_code == 200, answer.text
        scores = answer.json()["scores"]
        assert {n: np.float32(v).tolist() for n, v in scores.items()} == scores
        assert scores == {n: v.tolist() for n, v in expected.items()}
    for answer in (arrow, asked_arrow):
        assert answer.headers["content-type"] == arrow_body.MEDIA_TYPE
        table = pa.ipc.open_stream(answer.content).read_all()
        assert table.schema.metadata[b"model"].decode() == plain.json()["model"]
        assert all(np.array_equal(table[n].to_numpy(), v) for n, v in expected.items())


def test_a_ranking_is_by_falling_probability(folder, predictor):
    user, items = ROWS[:1].drop("ad"), ROWS.select("ad")
    rows = user.select(pl.all().gather([0] * len(ROWS))).hstack(items)
    expected = predictor.score(rows)
    request = {"user": objects(user)[0], "candidates": objects(items)}
    whole, part, arrow = asked(
        folder,
        post("/v1/rank", request),
        post("/v1/rank?label=buy&top=3", request),
        post("/v1/rank?label=buy&top=3", stream(user) + stream(items), **ARROW),
    )
    order = whole.json()["order"]
    # nine items and forty candidates: equal ones stand in the order of arrival
    assert order == sorted(range(40), key=lambda i: (-expected["click"][i], i))
    for n, values in whole.json()["scores"].items():
        assert values == expected[n][order].tolist()
    best = sorted(range(40), key=lambda i: (-expected["buy"][i], i))[:3]
    assert part.json()["order"] == best
    assert (part.json()["label"], whole.json()["label"]) == ("buy", "click")
    table = pa.ipc.open_stream(arrow.content).read_all()
    assert table["candidate"].to_pylist() == best
    assert np.array_equal(table["buy"].to_numpy(), expected["buy"][best])


def test_an_auction_sells_by_calibrated_probability(folder, predictor):
    user, items = ROWS[:1].drop("ad"), ROWS[:9].select("ad")
    chances = predictor.score(user.select(pl.all().gather([0] * 9)).hstack(items))["buy"]
    bids = [100_000 * (i + 1) for i in range(9)]
    request = {"user": objects(user)[0], "candidates": objects(items), "bids_micros": bids}
    query = "?label=buy&pricing=first&slots=2&reserve_micros=5"
    default, told = asked(
        folder, post("/v1/auction", request), post("/v1/auction" + query, request)
    )
    rules = AuctionRules(pricing="first", slots=2, reserve_micros=5)
    awards = run_auction(bids, chances.tolist(), rules)
    assert [a["candidate"] for a in told.json()["awards"]] == [a.candidate for a in awards]
    assert [a["price_micros"] for a in told.json()["awards"]] == [a.bid_micros for a in awards]
    assert told.json()["awards"][0]["probability"] == float(chances[awards[0].candidate])
    [award] = default.json()["awards"]
    assert award["price_micros"] <= award["bid_micros"]


def test_the_service_describes_itself_and_its_examples_are_answered(folder):
    model, document, health, ready, numbers = asked(
        folder, *map(get, ("/v1/model", "/openapi.json", "/healthz", "/readyz", "/metrics"))
    )
    assert health.json() == {"status": "ok"}
    assert ready.json()["model"] == model.json()["fingerprint"]
    assert 'fullrank_requests_total{worker="' in numbers.text
    assert f'fingerprint="{model.json()["fingerprint"]}"' in numbers.text
    paths = document.json()["paths"]
    examples = {
        path: next(iter(methods["post"]["requestBody"]["content"].values()))["example"]
        for path, methods in paths.items()
        if "requestBody" in methods.get("post", {})
    }
    names = ("auction", "explain", "rank", "retrieve", "score")
    assert sorted(examples) == [f"/v1/{name}" for name in names]
    answers = asked(folder, *(post(path, example) for path, example in examples.items()))
    assert sorted(a.status_code for a in answers) == [*[200] * 4, 404]  # there is no index
    assert model.json()["example"]["score"] == examples["/v1/score"]
    refs = [line for line in json.dumps(document.json()).split('"') if line.startswith("#/comp")]
    known = document.json()["components"]["schemas"]
    assert refs
    assert {ref.rsplit("/", 1)[1] for ref in refs} == set(known)


def test_a_stream_without_rows_is_refused_and_the_next_request_is_answered(folder):
    user, items = ROWS[:1].drop("ad"), ROWS.select("ad")
    empty, unranked, whole = asked(
        folder,
        post("/v1/score", stream(ROWS[:0]), **ARROW),
        post("/v1/rank", stream(user) + stream(items[:0]), **ARROW),
        post("/v1/score", stream(ROWS[:1]), **ARROW),
    )
    assert is_problem(empty, 422)
    assert is_problem(unranked, 422)
    assert whole.status_code == 200  # what scores batches is still alive


def swollen() -> dict[str, pa.Array]:
    """Columns of one row or few that stand for gigabytes."""
    many = 1 << 30
    offsets = pa.array([0, many], pa.int64())
    bits = pa.Array.from_buffers(pa.bool_(), many >> 6, [None, pa.py_buffer(bytes(many >> 9))])
    names = pa.array(["x" * (1 << 20)])
    return {
        "nulls in a list": pa.LargeListArray.from_arrays(offsets, pa.nulls(many)),
        "a list of a fixed size": pa.FixedSizeListArray.from_arrays(pa.nulls(many), many),
        "bits": pa.LargeListArray.from_arrays(pa.array([0, many >> 6], pa.int64()), bits),
        "one long name": pa.DictionaryArray.from_arrays(pa.array([0] * 400, pa.int8()), names),
        "one long tag": pa.ListArray.from_arrays(
            pa.array([0, 400], pa.int32()),
            pa.DictionaryArray.from_arrays(pa.array([0] * 400, pa.int8()), names),
        ),
    }


@pytest.mark.parametrize("kind", swollen())
def test_a_small_body_may_not_stand_for_gigabytes(kind):
    body = arrow_body.write_stream({"past": swollen()[kind]}, {})
    before = pa.total_allocated_bytes()
    with pytest.raises(RequestError) as caught:
        arrow_body.read_streams(body, 1, 5000)
    assert caught.value.status == 413
    assert pa.total_allocated_bytes() - before < 8 << 20
    column = swollen()[kind].slice(0, 0)  # the type is not what is refused
    assert len(arrow_body.read_streams(arrow_body.write_stream({"past": column}, {}), 1, 5)[0]) == 0


def test_every_part_of_a_problem_says_something(folder):
    [answer] = asked(folder, post("/v1/score", {"": 1}))
    assert is_problem(answer, 422)


def test_numbers_count_what_happened(folder):
    rows = {"rows": objects(ROWS[:3])}
    *_, numbers = asked(
        folder, post("/v1/score", rows), post("/v1/score", rows), post("/v1/score", b"{"),
        get("/nowhere"), get("/metrics"),
    )  # fmt: skip
    lines = [re.sub('worker="[0-9]+",?', "", line) for line in numbers.text.splitlines()]
    for line in (
        'fullrank_requests_total{path="/v1/score",status="200"} 2',
        'fullrank_requests_total{path="/v1/score",status="400"} 1',
        'fullrank_requests_total{path="other",status="404"} 1',
        'fullrank_request_seconds_count{path="/v1/score"} 3',
        'fullrank_rows_total{path="score"} 6',
        'fullrank_batch_rows_bucket{le="1"} 0',
        'fullrank_batch_rows_bucket{le="4"} 2',
        'fullrank_batch_rows_bucket{le="+Inf"} 2',
        "fullrank_batch_rows_sum{} 6",
        "fullrank_queue_rows{} 0",
    ):
        assert line in lines


# ---- items of an index


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Path:
    """An artefact of two towers with an index and bids."""
    place = catalogue.save_artifact(tmp_path_factory.mktemp("shop") / "artifact")
    engine = Engine.load(place)
    index = ItemIndex.build(engine.predictor, catalogue.catalogue(), bid="bid")
    index.save(place, engine.fingerprint)
    return place


def test_items_are_retrieved_ranked_and_sold_as_the_pipeline_does(shop):
    engine = Engine.load(shop)
    retrieval = Retrieval.load(shop, engine)
    user = engine.schema_example()["retrieve"]["user"]
    found = retrieval.retrieve(user, 7)
    label = engine.labels[0]
    names = retrieval.index.items[retrieval.index.item].gather(found.places).to_list()
    candidates = retrieval.index.rows(found.places)
    expected = engine.score(engine.encode_rank(user, candidates))[label]
    got, ten, ranked, sold, refused = asked(
        shop,
        post("/v1/retrieve?k=7", {"user": user}),
        post("/v1/retrieve", {"user": user}),
        post("/v1/rank", {"user": user, "candidates": candidates}),
        post("/v1/auction?retrieve=20&slots=2", {"user": user}),
        post("/v1/retrieve", {"user": {}}),
    )
    assert got.json()["items"] == names
    assert got.json()["scores"][label] == found.probabilities[label].tolist()
    assert len(ten.json()["items"]) == 10
    order = ranked.json()["order"]
    assert ranked.json()["scores"][label] == expected[order].tolist() == sorted(expected)[::-1]
    placed = Pipeline(retrieval, None, label).run(user, 20, AuctionRules(slots=2))
    assert [a["item"] for a in sold.json()["awards"]] == [p.item for p in placed]
    assert [a["price_micros"] for a in sold.json()["awards"]] == [
        p.award.price_micros for p in placed
    ]
    assert is_problem(refused, 422)


def test_a_large_ranking_without_an_index_runs_the_user_once(tmp_path):
    place = catalogue.save_artifact(tmp_path / "artifact")
    engine, seen = Engine.load(place), list[int]()
    rank = engine.schema_example()["rank"]
    many = {**rank, "candidates": (rank["candidates"] * 300)[:300]}

    async def ranked(client: httpx.AsyncClient, service: Service) -> list[httpx.Response]:
        model: Any = service.serving.engine.predictor.model
        encode = model.encode_user
        model.encode_user = lambda batch: (seen.append(len(batch)), encode(batch))[1]
        return [await client.send(post("/v1/rank", body)) for body in (many, rank)]

    large, small = served(place, ranked)
    assert seen == [64]  # the small one went with whatever else waited
    label = engine.labels[0]
    for answer, body in ((large, many), (small, rank)):
        scores = engine.score(engine.encode_rank(body["user"], body["candidates"]))[label]
        order = np.argsort(-scores, kind="stable")
        assert answer.json()["order"] == order.tolist()
        assert answer.json()["scores"][label] == scores[order].tolist()


@pytest.mark.parametrize("path", ["/v1/retrieve?k=5", "/v1/auction?retrieve=5"])
def test_what_is_retrieved_is_logged_and_replays(shop, tmp_path, path):
    shadow = ShadowConfig(folder=tmp_path / "shadow", every=1)
    example = Engine.load(shop).schema_example()["retrieve"]
    [answer] = asked(shop, post(path, example), shadow=shadow)
    assert answer.status_code == 200
    said = check_command(shop, tmp_path / "shadow")
    assert (said["rows"], said["encoded_again"], said["unequal"]) == (5, 5, 0)


def test_a_search_that_cannot_be_done_in_time_is_refused(shop):
    async def late(client: httpx.AsyncClient, service: Service) -> list[httpx.Response]:
        example = service.serving.engine.schema_example()["retrieve"]
        batcher = service.serving.batcher
        batcher._call_seconds, batcher._calls = 99.0, 1
        requests = [post("/v1/retrieve?deadline_ms=500", example)]
        requests.append(post("/v1/retrieve?deadline_ms=60000", example))
        return [await client.send(r) for r in requests]

    refused, also = served(shop, late)
    assert is_problem(refused, 429)
    assert is_problem(also, 429)


# ---- refusals


def one(**change: Any) -> dict[str, Any]:
    return {"rows": [objects(ROWS[:1])[0] | change]}


REFUSED = {
    "no such path": (get("/v1/nothing"), 404),
    "a path that climbs": (get("/v1/../../etc/passwd"), 404),
    "no such method": (get("/v1/score"), 405),
    "no index": (post("/v1/retrieve", {}), 404),
    "reload without a token": (post("/v1/reload", b""), 403),
    "broken JSON": (post("/v1/score", b"{"), 400),
    "no UTF-8": (post("/v1/score", b'{"rows": [{"user": "\xff"}]}'), 400),
    "deep": (post("/v1/score", b'{"rows":' + b"[" * 10**5), 422),
    "broken Arrow": (post("/v1/score", stream(ROWS)[:-99], **ARROW), 400),
    "one stream for two": (post("/v1/rank", stream(ROWS), **ARROW), 400),
    "Arrow for an auction": (post("/v1/auction", stream(ROWS), **ARROW), 415),
    "another type": (post("/v1/score", b"a=1", **{"Content-Type": "text/csv"}), 415),
    "compressed": (post("/v1/score", one(), **{"Content-Encoding": "gzip"}), 415),
    "wrong type": (post("/v1/score", one(price="a")), 422),
    "NaN": (post("/v1/score", json.dumps(one(price=float("nan"))).encode()), 400),
    "huge number": (post("/v1/score", one(price=1e300)), 422),
    "unknown field": (post("/v1/score", one(weather=1)), 422),
    "missing field": (post("/v1/score", {"rows": [{"user": "u1"}]}), 422),
    "no rows": (post("/v1/score", {"rows": []}), 422),
    "no candidates": (post("/v1/rank", {"user": {}, "candidates": []}), 422),
    "too many candidates": (
        post("/v1/rank", {"user": {"user": "u", "price": 1}, "candidates": [{"ad": 1}] * 10_101}),
        413,
    ),
    "bids and candidates": (
        post("/v1/auction", {"user": {"user": "u", "price": 1}, "candidates": [{"ad": 1}] * 2,
                             "bids_micros": [1]}),
        422,
    ),
    "unknown parameter": (post("/v1/score?label=click", one()), 422),
    "parameter twice": (post("/v1/score?deadline_ms=5&deadline_ms=6", one()), 422),
    "no number": (post("/v1/score?deadline_ms=-5", one()), 422),
    "digits of another script": (post("/v1/score?deadline_ms=%D9%A5", one()), 422),
    "huge parameter": (post("/v1/rank?top=" + "9" * 5000, one()), 422),
    "unknown label": (post("/v1/rank?label=clack", one()), 422),
    "too large": (post("/v1/score", b" " * 200_000), 413),
    "said to be too large": (post("/v1/score", b"{}", **{"Content-Length": "9" * 30}), 413),
}  # fmt: skip


def test_bad_requests_are_refused_in_five_parts_and_the_next_is_answered(folder):
    requests = [request for request, _ in REFUSED.values()]
    *answers, last = asked(
        folder, *requests, post("/v1/score", one()), max_body_bytes=150_000, max_rows=10_000
    )
    wrong = {
        name: (answer.status_code, answer.text[:200])
        for (name, (_, status)), answer in zip(REFUSED.items(), answers, strict=True)
        if not is_problem(answer, status)
    }
    assert wrong == {}
    assert last.status_code == 200
    assert answers[2].headers["allow"] == "POST"
    assert str(folder) not in "".join(a.text for a in answers)


def test_a_body_that_never_ends_is_not_read_to_its_end(folder):
    async def endless(client: httpx.AsyncClient, service: Service) -> tuple[Any, int]:
        sent = 0

        async def chunks() -> Any:
            nonlocal sent
            while sent < 10**9:
                sent += 10_000
                yield b" " * 10_000

        answer = await client.post("/v1/score", content=chunks())
        return answer, sent

    answer, sent = served(folder, endless, max_body_bytes=100_000)
    assert is_problem(answer, 413)
    assert sent < 200_000


def test_a_slow_body_times_out_and_holds_no_memory(folder):
    async def slow(client: httpx.AsyncClient, service: Service) -> tuple[Any, int]:
        async def chunks() -> Any:
            yield b'{"rows":'
            await asyncio.sleep(30)

        answer = await client.post("/v1/score", content=chunks())
        return answer, service.buffered

    answer, held = served(folder, slow, body_seconds=0.05)
    assert is_problem(answer, 408)
    assert held == 0


def test_bodies_together_have_a_bound(folder):
    async def two(client: httpx.AsyncClient, service: Service) -> list[httpx.Response]:
        gate = asyncio.Event()

        async def held() -> Any:
            yield b" " * 80_000
            await gate.wait()

        first = asyncio.create_task(client.post("/v1/score", content=held()))
        while not service.buffered:
            await asyncio.sleep(0.001)
        second = await client.send(post("/v1/score", b" " * 80_000))
        gate.set()
        return [await first, second]

    first, second = served(folder, two, buffered_bytes=100_000)
    assert is_problem(first, 400)
    assert is_problem(second, 429)
    assert int(second.headers["retry-after"]) >= 1


def test_a_deadline_that_cannot_be_met_is_refused_with_a_time_to_ask_again(folder):
    async def late(client: httpx.AsyncClient, service: Service) -> httpx.Response:
        batcher = service.serving.batcher
        batcher._pace, batcher._running_rows = 1e6, 1  # busy, on a machine that is slow today
        return await client.send(post("/v1/score?deadline_ms=1", one()))

    answer = served(folder, late)
    assert is_problem(answer, 429)
    assert int(answer.headers["retry-after"]) >= 1


def test_a_row_for_which_the_model_has_no_number_is_named(folder, monkeypatch):
    async def broken(client: httpx.AsyncClient, service: Service) -> list[httpx.Response]:
        engine = service.serving.engine

        def score(batch: Any) -> dict[str, np.ndarray]:
            return {"click": np.float32([0.5, np.nan]), "buy": np.float32([0.5, 0.5])}

        monkeypatch.setattr(engine, "score", score)
        return await client.send(post("/v1/score", {"rows": objects(ROWS[:2])}))

    answer = served(folder, broken)
    assert is_problem(answer, 422)
    assert answer.json()["where"] == "row 1, label 'click'"


def test_an_error_of_ours_says_nothing_about_us(folder, monkeypatch):
    async def failing(client: httpx.AsyncClient, service: Service) -> list[httpx.Response]:
        def score(batch: Any) -> Any:
            raise ZeroDivisionError("secret")

        monkeypatch.setattr(service.serving.engine, "score", score)
        return await client.send(post("/v1/score", one()))

    answer = served(folder, failing)
    assert answer.status_code == 500
    assert answer.headers["content-type"] == "application/problem+json"
    assert "secret" not in answer.text


def test_an_id_comes_back_unless_it_could_do_harm(folder):
    good, bad = asked(
        folder,
        get("/healthz", **{"X-Request-Id": "a-1:b.c_9"}),
        get("/healthz", **{"X-Request-Id": "a b" + "c" * 200}),
    )
    assert good.headers["x-request-id"] == "a-1:b.c_9"
    assert "x-request-id" not in bad.headers


# ---- tokens


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer "},
        {"Authorization": f"Bearer {TOKEN}x"},
        {"Authorization": f"Bearer {TOKEN[:-1]}"},
        {"Authorization": f"Basic {TOKEN}"},
        {"Authorization": TOKEN},
    ],
)
def test_a_wrong_or_missing_token_is_refused(folder, headers):
    paths = [post(p, {}, **headers) for p in ("/v1/score", "/v1/rank", "/v1/reload")]
    answers = asked(folder, *paths, get("/v1/model", **headers), tokens=("other" * 5, TOKEN))
    for answer in answers:
        assert is_problem(answer, 401)
        assert answer.headers["www-authenticate"] == "Bearer"
        assert TOKEN[:-1] not in answer.text


def test_any_of_the_tokens_opens_and_probes_need_none(folder):
    scored, other, health, numbers = asked(
        folder,
        post("/v1/score", one(), **AUTHORISED),
        post("/v1/score", one(), Authorization="bearer other-other-other"),
        get("/healthz"),
        get("/metrics"),
        tokens=("other-other-other", TOKEN),
    )
    assert [a.status_code for a in (scored, other, health, numbers)] == [200] * 4


# ---- the shadow log


@pytest.mark.parametrize("place", ["folder", "shop"])
def test_what_is_served_replays_to_the_bit_from_the_shadow_log(request, tmp_path, place):
    artifact = request.getfixturevalue(place)
    engine = Engine.load(artifact)
    example = engine.schema_example()
    score, rank = example["score"], example["rank"]

    async def ask(client: httpx.AsyncClient, service: Service) -> str:
        for path, content in (("/v1/score", score), ("/v1/rank", rank)):
            assert (await client.send(post(path, content))).status_code == 200
        auction = rank | {"bids_micros": [1] * len(rank["candidates"])}
        assert (await client.send(post("/v1/auction", auction))).status_code == 200
        return (await client.send(get("/metrics"))).text

    numbers = served(artifact, ask, shadow=ShadowConfig(folder=tmp_path / "log", every=1))
    written = [row for path in log_files(tmp_path / "log") for row in Log.open(path).rows()]
    assert len(written) == 3 * len(score["rows"])
    assert "fullrank_shadow_dropped_rows" in numbers
    replay = Replay(engine.featurizer, engine.score)
    assert replay.check(written) == []
    other = dataclasses.replace(written[0], scores=dict.fromkeys(written[0].scores, 0.5))
    assert len(replay.check([other])) == 1


# ---- swaps


def test_a_worker_that_can_no_longer_follow_the_others_ends(folder, tmp_path, monkeypatch, caplog):
    generations, signals = Generations(tmp_path), list[int]()
    fingerprint = read_manifest(folder)["fingerprint"]
    generations.publish(generations.keep(folder, fingerprint))
    monkeypatch.setattr(signal, "raise_signal", signals.append)

    async def run() -> None:
        service = Service(ServiceConfig(artifact=folder, runtime=tmp_path))
        monkeypatch.setattr(Generations, "current", lambda self: 1 / 0)
        async with service.running():
            async with asyncio.timeout(10):
                while not signals:
                    await asyncio.sleep(0.01)

    asyncio.run(run())
    assert signals == [signal.SIGTERM]
    assert "following has failed" in caplog.text


def test_a_new_artefact_is_swapped_in_and_a_bad_one_is_not(log, tmp_path, caplog):
    folder = tmp_path / "artifact"
    make_artifact("dcnv2", log).save(folder)
    old = Predictor.load(folder).score(ROWS)["click"].tolist()

    async def swaps(client: httpx.AsyncClient, service: Service) -> list[Any]:
        async def scores() -> list[float]:
            answer = await client.send(post("/v1/score", {"rows": objects(ROWS)}, **AUTHORISED))
            return answer.json()["scores"]["click"]

        reload = post("/v1/reload", b"", **AUTHORISED)
        seen = [await scores()]
        make_artifact("rankmixer", log, seed=5).save(folder)
        seen += [await scores(), await client.send(reload), await scores()]
        (folder / "weights.safetensors").write_bytes(b"broken")
        seen += [await client.send(reload), await scores()]
        async with asyncio.timeout(30):  # what served before is gone, its thread included
            while sum(t.name.startswith("scoring") for t in threading.enumerate()) > 1:
                await asyncio.sleep(0.01)
        return [*seen, await client.send(get("/metrics"))]

    with caplog.at_level(logging.WARNING):
        before, still, swapped, after, refused, kept, numbers = served(
            folder, swaps, tokens=(TOKEN,)
        )
    assert before == still == old
    assert swapped.status_code == 200
    assert swapped.json()["before"] != swapped.json()["model"]
    assert after == kept != old
    assert is_problem(refused, 409)
    assert "weights.safetensors" in refused.json()["where"]
    assert str(tmp_path) not in refused.text
    assert "kept" in caplog.text
    assert 'result="refused"} 1' in numbers.text
    assert 'result="swapped"} 1' in numbers.text


def test_no_request_is_dropped_or_mixed_up_by_swaps(log, tmp_path):
    folder, places = tmp_path / "artifact", [tmp_path / "a", tmp_path / "b"]
    for seed, place in enumerate((folder, *places)):
        make_artifact("dcnv2", log, seed=seed % 2).save(place)
    expected = {}
    for place in (folder, places[0]):
        fingerprint = json.loads((place / "artifact.json").read_text())["fingerprint"]
        expected[fingerprint] = Predictor.load(place).score(ROWS)["click"]

    async def storm(client: httpx.AsyncClient, service: Service) -> tuple[int, set[str]]:
        done, models, stop = 0, set[str](), asyncio.Event()

        async def ask(at: int) -> None:
            nonlocal done
            while not stop.is_set():
                row = (at + done) % len(ROWS)
                answer = await client.send(
                    post("/v1/score", {"rows": objects(ROWS[row : row + 1])})
                )
                assert answer.status_code == 200, answer.text
                model = answer.json()["model"]
                assert answer.json()["scores"]["click"] == [float(expected[model][row])]
                models.add(model)
                done += 1

        asking = [asyncio.create_task(ask(i)) for i in range(4)]
        for seed in (1, 0, 1):
            make_artifact("dcnv2", log, seed=seed).save(folder)
            await service.reload()
            seen = done
            while done < seen + 8:
                await asyncio.sleep(0.001)
        stop.set()
        await asyncio.gather(*asking)
        return done, models

    done, models = served(folder, storm)
    assert done >= 24
    assert models == set(expected)


def test_what_is_loaded_stays_out_of_the_way_and_goes_when_it_is_replaced(log, folder):
    async def reloaded() -> None:
        service = Service(ServiceConfig(artifact=folder))
        async with service.running():
            assert gc.get_freeze_count() > 10_000
            old = weakref.ref(service.serving.engine.predictor.model)
            make_artifact("dcnv2", log, seed=1).save(folder)
            await service.reload()
            await asyncio.gather(*service._tasks)
            assert old() is None
            assert gc.get_freeze_count() > 10_000

    asyncio.run(reloaded())
    gc.unfreeze()


def test_two_reloads_at_once_are_one(log, folder):
    async def both(client: httpx.AsyncClient, service: Service) -> list[int]:
        answers = await asyncio.gather(
            *(client.send(post("/v1/reload", b"", **AUTHORISED)) for _ in range(2))
        )
        return sorted(a.status_code for a in answers)

    assert served(folder, both, tokens=(TOKEN,)) == [200, 409]


def test_a_request_that_is_still_being_read_when_a_swap_comes_is_answered(folder):
    async def swap(client: httpx.AsyncClient, service: Service) -> httpx.Response:
        gate, text = asyncio.Event(), json.dumps(one()).encode()

        async def held() -> Any:
            yield text[:10]
            await gate.wait()
            yield text[10:]

        asking = asyncio.create_task(client.post("/v1/score", content=held()))
        while not service.buffered:
            await asyncio.sleep(0.001)
        await service.reload()
        await asyncio.sleep(0.1)
        gate.set()
        return await asking

    assert served(folder, swap).status_code == 200
