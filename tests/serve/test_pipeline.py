"""Retrieve, rank and sell, against scoring every item, and sorting and selling by hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fullrank.errors import ArtifactError, AuctionError, ConfigError, RequestError
from fullrank.serve.auction import AuctionRules, run_auction
from fullrank.serve.engine import Engine
from fullrank.serve.pipeline import Pipeline, Retrieval
from fullrank.serve.retrieval import ItemIndex
from fullrank.serve.two_sided import TwoSided
from tests.serve.catalogue import SPEC, USERS, catalogue, save_artifact


def loaded(folder: Path, name: str) -> Engine:
    return Engine.load(save_artifact(folder, name))


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return loaded(tmp_path_factory.mktemp("pipeline") / "artifact", "two_tower")


@pytest.fixture(scope="module")
def ranker(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return loaded(tmp_path_factory.mktemp("pipeline") / "ranker", "dcnv2")


@pytest.fixture(scope="module")
def index(engine: Engine) -> ItemIndex:
    return ItemIndex.build(engine.predictor, catalogue(), "bid")


@pytest.fixture(scope="module", params=["exact", "hnsw"])
def retrieval(request: pytest.FixtureRequest, engine: Engine, index: ItemIndex) -> Retrieval:
    return Retrieval(engine, index, request.param)


def everything(engine: Engine, index: ItemIndex, user: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Scores every item of the catalogue the ordinary way."""
    return engine.score(engine.encode_rank(user, index.rows(np.arange(len(index)))))


@pytest.mark.parametrize("label", ["click", "buy", None])
@pytest.mark.parametrize("user", USERS, ids=lambda user: user["user"])
def test_the_best_items_are_found_with_the_scores_of_the_server(
    retrieval: Retrieval, user: Mapping[str, Any], label: str | None
) -> None:
    found = retrieval.retrieve(user, 12, label)
    scores = everything(retrieval.engine, retrieval.index, user)
    best = np.argsort(-scores[label or "click"], kind="stable")[:12]
    assert found.places.tolist() == best.tolist()  # a graph of 90 nodes misses nothing
    read, _ = retrieval.engine.wire.rank(user, retrieval.index.rows(np.arange(1)))
    assert retrieval.retrieve(read, 12, label).places.tolist() == best.tolist()
    for name, values in found.probabilities.items():
        assert np.array_equal(values, scores[name][found.places])  # to the bit
        assert values.dtype == np.float32


def test_users_get_different_items(retrieval: Retrieval) -> None:
    first = [retrieval.retrieve(user, 5).places.tolist() for user in USERS]
    assert first[0] != first[1] or first[1] != first[2]


@pytest.mark.parametrize("user", USERS, ids=lambda user: user["user"])
def test_known_new_and_changed_candidates_score_as_ever(
    retrieval: Retrieval, user: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    index, engine = retrieval.index, retrieval.engine
    candidates = index.rows(np.array([4, 17, 80, 4, 55]))
    candidates[1] = {**candidates[1], "price": 123.0}
    candidates.append({"ad": "never seen", "price": 1.0})
    user_given, given = engine.wire.rank(user, candidates)
    assert index.places(given.columns, 6).tolist() == [4, -1, 80, 4, 55, -1]
    for rows in (candidates, candidates[:1], candidates[-1:]):
        expected = engine.score(engine.encode_rank(user, rows))
        for label, values in retrieval.sides.rank(*engine.wire.rank(user, rows)).items():
            assert np.array_equal(values, expected[label])
    monkeypatch.setattr(
        ItemIndex, "places", lambda _, columns, rows: np.array([5, -1, 80, 4, 55, -1])
    )
    moved = retrieval.sides.rank(user_given, given)  # a wrong place is seen
    assert not np.array_equal(
        moved["click"], engine.score(engine.encode_rank(user, candidates))["click"]
    )


def test_context_of_candidates_is_read(engine: Engine, index: ItemIndex) -> None:
    rows = [
        {**row, "hour": hour} for row, hour in zip(index.rows(np.arange(3)), (1, 2, 3), strict=True)
    ]
    scores = TwoSided(engine, index).rank(*engine.wire.rank({"user": "u1"}, rows))
    expected = engine.score(engine.encode_rank({"user": "u1"}, rows))
    assert np.array_equal(scores["click"], expected["click"])
    same = TwoSided(engine, index).rank(
        *engine.wire.rank({"user": "u1", "hour": 1}, index.rows(np.arange(3)))
    )
    assert scores["click"][0] == same["click"][0]
    assert scores["click"][1] != same["click"][1]


def test_a_user_is_encoded_once_and_known_items_never(
    engine: Engine, index: ItemIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: dict[str, list[int]] = {"encode_user": [], "encode_item": []}
    for name, seen in rows.items():
        encode = getattr(engine.predictor.model, name)

        def spy(batch: Any, encode: Any = encode, seen: list[int] = seen) -> Any:
            seen.append(len(batch))
            return encode(batch)

        monkeypatch.setattr(engine.predictor.model, name, spy)
    places = np.arange(90)
    TwoSided(engine, index).rank(*engine.wire.rank(USERS[0], index.rows(places)))
    assert rows == {"encode_user": [64], "encode_item": []}  # one block, filled with one row
    TwoSided(engine).rank(*engine.wire.rank(USERS[0], index.rows(places)))
    assert rows["encode_user"] == [64, 64]
    assert sum(rows["encode_item"]) >= 90


@pytest.mark.parametrize("candidates", [1, 64, 90, 300, 700])
def test_sides_without_an_index_score_as_ever(
    engine: Engine, index: ItemIndex, candidates: int
) -> None:
    rows = index.rows(np.arange(candidates) % 90)
    alone = TwoSided(engine)
    scores = alone.rank(*engine.wire.rank(USERS[0], rows))
    for label, expected in engine.score(engine.encode_rank(USERS[0], rows)).items():
        assert np.array_equal(scores[label], expected)
    assert alone.pays(candidates) == (candidates >= 256)
    assert TwoSided(engine, index).pays(1)


def test_more_than_there_is_and_less_than_one(retrieval: Retrieval) -> None:
    assert len(retrieval.retrieve(USERS[0], 1000).places) == 90
    with pytest.raises(RequestError, match="a retrieval cannot be done"):
        retrieval.retrieve(USERS[0], 0)
    with pytest.raises(RequestError, match="a retrieval cannot be done") as error:
        retrieval.retrieve(USERS[0], 1, "clik")
    assert "click" in error.value.fix


def test_what_the_graph_misses_is_measured(retrieval: Retrieval) -> None:
    if retrieval.measured is None:
        assert retrieval._search is retrieval.index
        return
    assert retrieval.measured.recall == 1.0
    assert (retrieval.measured.at, retrieval.measured.queries) == (90, 200)
    assert retrieval.measured.seconds > 0


def by_hand(
    retrieval: Retrieval, ranker: Engine, user: Mapping[str, Any], k: int, rules: AuctionRules
) -> list[tuple[str, int]]:
    index, items = retrieval.index, catalogue()
    scores = everything(retrieval.engine, index, user)["click"]
    kept = np.argsort(-scores, kind="stable")[:k]
    chances = everything(ranker, index, user)["click"][kept].tolist()
    bids = [items["bid"][int(i)] for i in kept]
    return [
        (items["ad"][int(kept[a.candidate])], a.price_micros)
        for a in run_auction(bids, chances, rules)
    ]


@pytest.mark.parametrize("user", USERS, ids=lambda user: user["user"])
@pytest.mark.parametrize("two_stages", [True, False])
def test_slots_are_sold_as_by_hand(
    retrieval: Retrieval, ranker: Engine, user: Mapping[str, Any], two_stages: bool
) -> None:
    pipeline = Pipeline(retrieval, ranker if two_stages else None, "click")
    rules = AuctionRules(slots=3, reserve_micros=1000)
    shown = pipeline.run(user, 20, rules)
    expected = by_hand(retrieval, ranker if two_stages else retrieval.engine, user, 20, rules)
    assert [(p.item, p.award.price_micros) for p in shown] == expected
    assert len(shown) == 3
    for p in shown:
        assert retrieval.index.items["ad"][p.place] == p.item
        assert p.award.price_micros <= p.award.bid_micros == catalogue()["bid"][p.place]
    assert pipeline.run(user, 20, AuctionRules(reserve_micros=10**12)) == []


def test_two_stages_are_not_one(retrieval: Retrieval, ranker: Engine) -> None:
    rules = AuctionRules(slots=5)
    one, two = (Pipeline(retrieval, r, "click").run(USERS[0], 30, rules) for r in (None, ranker))
    assert [p.item for p in one] != [p.item for p in two]


def test_each_model_is_given_the_columns_that_it_knows(
    engine: Engine, index: ItemIndex, tmp_path: Path
) -> None:
    columns = tuple(c for c in SPEC.columns if c.name not in ("past", "picture"))
    few = Engine.load(save_artifact(tmp_path / "few", "lr", spec=replace(SPEC, columns=columns)))
    shown = Pipeline(Retrieval(engine, index), few, "click").run(USERS[0], 90, AuctionRules())
    user = {k: v for k, v in USERS[0].items() if k != "past"}
    rows = [{k: v for k, v in r.items() if k != "picture"} for r in index.rows(np.arange(90))]
    scores = few.score(few.encode_rank(user, rows))["click"]
    assert shown[0].probability == scores[shown[0].place]
    for ranker in (few, None):
        with pytest.raises(RequestError):
            Pipeline(Retrieval(engine, index), ranker, "click").run(
                {"user": "u1", "shoe": 3}, 5, AuctionRules()
            )


def test_a_pipeline_without_bids_or_label_is_refused(engine: Engine) -> None:
    plain = Retrieval(engine, ItemIndex.build(engine.predictor, catalogue()))
    with pytest.raises(AuctionError, match="nothing to sell by"):
        Pipeline(plain, None, "click")
    with pytest.raises(ConfigError, match="impossible value"):
        Pipeline(plain, None, "clik")


def test_a_ranker_cannot_retrieve(ranker: Engine, index: ItemIndex) -> None:
    with pytest.raises(ArtifactError, match="no vectors"):
        Retrieval(ranker, index)


def test_an_index_is_loaded_with_its_artefact(tmp_path: Path, index: ItemIndex) -> None:
    folder = tmp_path / "artifact"
    engine = loaded(folder, "two_tower")
    with pytest.raises(ArtifactError, match="an index cannot be used"):
        Retrieval.load(folder, engine)
    index.save(folder, engine.fingerprint)
    found = Retrieval.load(folder, engine).retrieve(USERS[0], 3)
    assert found.places.tolist() == Retrieval(engine, index).retrieve(USERS[0], 3).places.tolist()
