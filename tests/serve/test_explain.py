"""What carried a score, against rows edited by hand and against a model whose reason is known."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import polars as pl
import pytest
import torch

from fullrank.data.spec import Number
from fullrank.serve.app import create_app
from fullrank.serve.engine import Engine
from fullrank.serve.explain import MOST_EVENTS, leave_out, told
from fullrank.serve.predictor import Predictor
from fullrank.serve.service import Limits, Service, ServiceConfig

from . import conftest
from .conftest import SPEC, make_artifact, make_log

ROWS = make_log(12, seed=1).drop("click", "buy")
LABELS = ("click", "buy")
UNSEEN = {"user": "nobody", "ad": -7, "browser": "none"}


def objects(frame: pl.DataFrame) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if v is not None} for row in frame.to_dicts()]


def explained(engine: Engine, row: dict[str, Any], label: str = "click") -> dict[str, Any]:
    given = engine.wire.rows([row])
    parts = leave_out(engine.encode_rows(given), engine.blank, SPEC, given)
    logits = engine.logits(parts.batch)
    return told(parts, logits[label], engine.probabilities(logits)[label])


def edited(row: dict[str, Any], column: str, event: int | None) -> dict[str, Any]:
    """The raw row without a token, as a person would write it."""
    if event is not None:
        return row | {column: [v for i, v in enumerate(row[column]) if i != event]}
    return row | {column: UNSEEN.get(column)}


@pytest.mark.parametrize("model", ["dcnv2", "rankmixer", "din"])
def test_a_token_left_out_scores_as_the_row_edited_by_hand(model, log):
    artifact = make_artifact(model, log)
    predictor = Predictor(artifact)
    engine = Engine(predictor, "f", predictor.model.score)
    moved: set[str] = set()
    for row in objects(ROWS):
        said = explained(engine, row)
        places = [(t["column"], t["event"]) for t in said["tokens"]]
        assert len(set(places)) == len(places)
        events = [("past", i) for i in range(len(row.get("past", [])))]
        filled = {(n, None) for n, v in row.items() if v not in ("", [])}
        assert set(places) == filled | set(events)
        by_hand = [row, *(edited(row, *place) for place in places)]
        frame = pl.DataFrame(by_hand, schema_overrides=ROWS.schema, infer_schema_length=None)
        encoded = predictor.encode(frame)
        logits = predictor.logits(encoded)["click"].astype(np.float64)
        chances = predictor.score(frame)["click"]
        assert said["logit"] == logits[0]
        assert said["probability"] == chances[0]
        assert [t["change"] for t in said["tokens"]] == (logits[1:] - logits[0]).tolist()
        assert [t["probability_without"] for t in said["tokens"]] == chances[1:].tolist()
        sizes = [abs(t["change"]) for t in said["tokens"]]
        assert sizes == sorted(sizes, reverse=True)
        moved |= {t["column"] for t in said["tokens"] if t["change"]}
    reads = {c.name for c in SPEC.columns} - {"click", "buy"}
    assert moved >= reads - ({"past"} if model != "din" else set())


def test_only_the_column_that_a_score_depends_on_carries_it(log):
    predictor = Predictor(make_artifact("dcnv2", log))

    def taste(batch: Any) -> dict[str, torch.Tensor]:
        logits = 3.0 * batch.numeric["age"] - 1.0
        return {"click": logits, "buy": -logits}

    engine = Engine(predictor, "f", taste)
    row = objects(ROWS.filter(pl.col("age").is_not_null()))[0]
    for label in ("click", "buy"):
        first, *others = explained(engine, row, label)["tokens"]
        assert (first["column"], first["event"]) == ("age", None)
        assert abs(first["change"]) > 0
        assert others
        assert all(t["change"] == 0 for t in others)


@pytest.mark.parametrize("before", [0, 60])  # longer than what is read of a history
def test_an_event_that_is_the_reason_is_named_with_its_place(before, log):
    predictor = Predictor(make_artifact("dcnv2", log))
    sought = engine_row(predictor, 5)

    def hits(batch: Any) -> dict[str, torch.Tensor]:
        past = batch.sequences["past"]
        values, valid = past.padded("item", 64)
        logits = ((values == sought) & valid).sum(1).to(torch.float32)
        return {"click": logits, "buy": logits}

    engine = Engine(predictor, "f", hits)
    older = [1] * before
    row = objects(ROWS)[0] | {"past": [*older, 1, 2, 5, 3, 5, 5]}
    tokens = explained(engine, row)["tokens"]
    assert [(t["event"], t["change"]) for t in tokens if t["change"]] == [
        (None, -3.0), (before + 2, -1.0), (before + 4, -1.0), (before + 5, -1.0),
    ]  # fmt: skip
    assert [t["value"] for t in tokens[:2]] == [f"all {min(50, before + 6)} events", "5"]


def test_a_number_that_is_left_out_reads_as_an_empty_one(log, monkeypatch):
    """The mean of training, where a number is not scaled; its change would else be that of a 0."""
    kept = tuple(
        Number(name="price", transform="none") if c.name == "price" else c for c in SPEC.columns
    )
    monkeypatch.setattr(conftest, "SPEC", replace(SPEC, columns=kept))
    predictor = Predictor(make_artifact("dcnv2", log))
    engine = Engine(predictor, "f", lambda batch: dict.fromkeys(LABELS, batch.numeric["price"]))
    said = explained(engine, objects(ROWS)[0] | {"price": 9.0})
    [change] = [t["change"] for t in said["tokens"] if t["column"] == "price"]
    assert change == pytest.approx(log["price"].mean() - 9.0, rel=1e-5)


def engine_row(predictor: Predictor, item: int) -> int:
    return int(predictor.artifact.featurizer.vocabularies["item"].rows(pl.Series([item]))[0])


@pytest.mark.parametrize("length", [MOST_EVENTS - 1, MOST_EVENTS, MOST_EVENTS + 9])
def test_of_a_long_history_the_newest_events_are_tried(length, log):
    predictor = Predictor(make_artifact("din", log))
    engine = Engine(predictor, "f", predictor.model.score)
    given = [i % 9 for i in range(length)]
    said = explained(engine, objects(ROWS)[0] | {"past": given})
    places = sorted(t["event"] for t in said["tokens"] if t["event"] is not None)
    assert places == list(range(max(0, length - MOST_EVENTS), length))
    assert all(t["value"] == str(given[t["event"]]) for t in said["tokens"] if t["event"])
    assert said["events_not_tried"] == 0  # the spec reads no more than 50 itself


def test_more_events_than_are_tried_are_counted(log, monkeypatch):
    monkeypatch.setattr("fullrank.serve.explain.MOST_EVENTS", 3)
    predictor = Predictor(make_artifact("din", log))
    engine = Engine(predictor, "f", predictor.model.score)
    said = explained(engine, objects(ROWS)[0] | {"past": [1, 2, 3, 4, 5, 6, 7]})
    assert sorted(t["event"] for t in said["tokens"] if t["event"] is not None) == [4, 5, 6]
    assert said["events_not_tried"] == 4


def test_what_is_shown_of_a_value_is_short_and_printable(log):
    predictor = Predictor(make_artifact("dcnv2", log))
    engine = Engine(predictor, "f", predictor.model.score)
    row = objects(ROWS)[0] | {"user": "u\n" * 500, "tags": ["t1", True, 2.0, None], "price": 3}
    shown = {t["column"]: t["value"] for t in explained(engine, row)["tokens"]}
    assert shown["user"].startswith("u?u?")
    assert len(shown["user"]) == 100
    assert shown["tags"] == "t1, true, 2, empty"
    assert shown["price"] == "3"


# ---- over HTTP


def answers(folder: Any, *requests: tuple[str, Any], **limits: Any) -> list[httpx.Response]:
    async def run() -> list[httpx.Response]:
        patient = Limits(**({"deadline_ms": 60_000.0} | limits))
        service = Service(ServiceConfig(artifact=folder, limits=patient))
        carrier = httpx.ASGITransport(create_app(service))
        async with (
            service.running(),
            httpx.AsyncClient(transport=carrier, base_url="http://t") as client,
        ):
            asked = [await client.post(path, json=body) for path, body in requests]
            return [*asked, await client.get("/metrics")]

    return asyncio.run(run())


def test_the_endpoint_tells_what_the_engine_finds_for_each_label(saved):
    engine = Engine.load(saved)
    rows = objects(ROWS)[:2]
    path = "/v1/explain"
    asked = [(f"{path}?label={label}", {"row": row}) for label in engine.labels for row in rows]
    *said, numbers = answers(saved, *asked, (path, {"row": rows[0]}))
    expected = [explained(engine, row, label) for label in engine.labels for row in rows]
    for answer, right, (url, _) in zip(said, expected, asked, strict=False):
        head = {"model": engine.fingerprint, "label": url.partition("=")[2]}
        assert answer.json() == head | right
    assert said[-1].json() == said[0].json()
    assert expected[0]["logit"] != expected[2]["logit"]
    variants = sum(1 + len(a.json()["tokens"]) for a in said)
    assert f'path="explain"}} {variants}' in numbers.text
    assert 'fullrank_requests_total{worker="' in numbers.text
    assert 'path="/v1/explain"' in numbers.text


@pytest.mark.parametrize(
    ("path", "body", "status", "where"),
    [
        ("/v1/explain", {"row": {"user": 1}}, 422, "row"),
        ("/v1/explain", {"row": objects(ROWS)[0] | {"price": "dear"}}, 422, "row.price"),
        ("/v1/explain", {"rows": [objects(ROWS)[0]]}, 422, "the body"),
        ("/v1/explain?label=like", {"row": objects(ROWS)[0]}, 422, "the query, label"),
        ("/v1/explain?top=1", {"row": objects(ROWS)[0]}, 422, "the query"),
        ("/v1/explain", {"row": objects(ROWS)[0] | {"price": 1e300}}, 422, "column 'price', row 0"),
    ],
)
def test_a_wrong_request_is_refused_where_it_is_wrong(path, body, status, where, saved):
    answer = answers(saved, (path, body))[0]
    assert (answer.status_code, answer.json()["where"]) == (status, where)


def test_tokens_wait_like_other_rows_and_are_refused_in_time(saved, monkeypatch):
    """The rows of all variants count: what is too much to be scored in time is not begun."""
    row = objects(ROWS)[0] | {"past": [1, 2, 3]}
    monkeypatch.setattr(Engine, "seconds", lambda self, rows: float(rows))
    seen: list[int] = []
    real = Engine.logits
    monkeypatch.setattr(
        Engine, "logits", lambda self, batch: seen.append(len(batch)) or real(self, batch)
    )

    async def run() -> tuple[int, str | None]:
        service = Service(ServiceConfig(artifact=saved, limits=Limits(deadline_ms=5000.0)))
        loaded = len(seen)
        carrier = httpx.ASGITransport(create_app(service))
        async with (
            service.running(),
            httpx.AsyncClient(transport=carrier, base_url="http://t") as client,
        ):
            service.serving.batcher._running_rows = 1  # the model is busy
            answer = await client.post("/v1/explain", json={"row": row})
            assert len(seen) == loaded
            service.serving.batcher._running_rows = 0
            assert (await client.post("/v1/explain", json={"row": row})).status_code == 200
            return answer.status_code, answer.headers.get("retry-after")

    status, retry = asyncio.run(run())
    assert status == 429
    assert retry is not None
