"""Served rows on disk: what replays, what is seen when it does not, and what never gets there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from textwrap import dedent

import numpy as np
import polars as pl
import pytest

import fullrank.serve.shadow as shadow
from fullrank.data.featurizer import Featurizer
from fullrank.data.spec import Category, Event, History, Number, Spec, Tags, Target
from fullrank.data.spec_json import spec_from_dict, spec_to_dict
from fullrank.errors import ConfigError, DataFormatError, SchemaError
from fullrank.serve.artifact import Artifact
from fullrank.serve.engine import Engine
from fullrank.serve.predictor import Predictor, calibrated
from fullrank.serve.replay import Log, Replay, Row
from fullrank.serve.shadow import ShadowConfig, ShadowLog, log_files, raw_rows

from .conftest import SPEC, make_artifact, make_log

SECRET, AGE, EVENT = "geheim-käse-7731", 77.3125, 990_731
HIDDEN = ("user", "age", "tags", "past")


def redacting(spec: Spec) -> Spec:
    """The same spec with one redacted column of every kind."""
    columns = tuple(
        replace(c, events=tuple(replace(e, redact=True) for e in c.events))
        if isinstance(c, History)
        else replace(c, redact=True)
        if c.name in HIDDEN and isinstance(c, Category | Number | Tags)
        else c
        for c in spec.columns
    )
    return replace(spec, columns=columns)


@pytest.fixture(scope="module", params=["open", "redacted"])
def engine(request: pytest.FixtureRequest, log: pl.DataFrame) -> Engine:
    artifact = make_artifact("din", log)
    if request.param == "redacted":
        featurizer = Featurizer.fit(redacting(SPEC), log.lazy())
        artifact = replace(artifact, featurizer=featurizer)
    predictor = Predictor(artifact)
    return Engine(predictor, "f" * 16, predictor.model.score)


def requests(rows: int = 40, seed: int = 3) -> list[dict]:
    """Rows as JSON brings them: odd types, unseen and empty values, absent optional columns."""
    found = make_log(rows, seed).drop("click", "buy").to_dicts()
    found[1]["ad"] = str(found[1]["ad"])
    found[2] |= {"user": SECRET, "age": AGE, "tags": [SECRET, "t1"], "past": [3, EVENT, 4]}
    found[3] |= {"user": 12, "browser": True, "tags": None, "picture": None, "past": None}
    found[4] |= {"price": -0.0, "past": [str(i % 9) for i in range(70)]}
    found[5]["tags"] = ["t0", 1]  # no data frame holds it
    found[6] |= {"browser": None, "age": None, "tags": []}
    return found


def started(engine: Engine, folder: Path, every: int = 1, **options: int) -> ShadowLog:
    config = ShadowConfig(folder=folder, every=every, **options)
    return ShadowLog(config, engine.artifact, engine.fingerprint)


def serve(engine: Engine, log: ShadowLog, rows: list[dict]) -> dict[str, np.ndarray]:
    batch = engine.encode_rows(rows)
    scores = engine.score(batch)
    log.offer(raw_rows(rows), batch, scores)
    return scores


def read(folder: Path) -> list[Row]:
    return [row for path in log_files(folder) for row in Log.open(path).rows()]


def replayed(engine: Engine, rows: list[Row], artifact: Artifact | None = None):
    """The replay, by the predictor of an artefact that nothing was served with."""
    predictor = Predictor(artifact or engine.artifact)
    replay = Replay(
        predictor.artifact.featurizer,
        lambda batch: calibrated(predictor.logits(batch), predictor.artifact.calibration),
    )
    return replay, replay.check(rows)


@pytest.fixture
def served(engine: Engine, tmp_path: Path) -> list[Row]:
    """Forty rows of odd requests, written and read again."""
    log = started(engine, tmp_path / "log")
    serve(engine, log, requests())
    log.close()
    assert (log.written, log.dropped) == (40, 0)
    return read(tmp_path / "log")


# ---- replay


def test_what_was_served_replays_to_the_bit(engine, served):
    scores = engine.score(engine.encode_rows(requests()))
    assert [row.scores["click"] for row in served] == scores["click"].tolist()
    assert len({row.scores["click"] for row in served}) > 30
    replay, differences = replayed(engine, served)
    assert differences == []
    assert replay.encoded == (40 if engine_hides(engine) else 39)


def engine_hides(engine: Engine) -> bool:
    return bool(engine.featurizer.spec.redacted())


def test_one_bit_of_one_score_is_seen_and_nothing_else(engine, served):
    up = float(np.nextafter(np.float32(served[9].scores["buy"]), np.float32(2)))
    changed = replace(served[9], scores=served[9].scores | {"buy": up})
    _, differences = replayed(engine, [*served[:9], changed, *served[10:]])
    assert [d.row for d in differences] == [changed]
    assert differences[0].scores == {"buy": (up, served[9].scores["buy"])}
    assert differences[0].encoded == {}


def test_other_weights_are_seen_in_every_row(engine, served):
    weights = dict(engine.artifact.weights)
    name = max((n for n in weights if "head" in n or "bias" in n), key=str)
    weights[name] = weights[name] + 1e-3
    _, differences = replayed(engine, served, replace(engine.artifact, weights=weights))
    assert len(differences) == 40
    assert all(d.scores and not d.encoded for d in differences)


def test_a_value_that_is_encoded_otherwise_now_is_seen_unless_it_is_redacted(engine, served):
    log = make_log(300).with_columns(user=pl.lit("u1"), price=pl.col("price") * 3)
    other = replace(engine.artifact, featurizer=Featurizer.fit(engine.featurizer.spec, log.lazy()))
    rows = [replace(r, encoded=r.encoded | {"user": 0}, scores={}) for r in served]
    found = Replay(other.featurizer, lambda batch: {}).check(rows)
    assert len(found) > 30
    names = {name for d in found for name in d.encoded}
    assert "price" in names
    assert ("user" in names) == (not engine_hides(engine))
    row = next(d for d in found if d.row.place.endswith("line 10"))
    again = log[:1].with_columns(price=pl.lit(row.row.raw["price"]))
    price = float(other.featurizer(again).numeric["price"][0])
    assert row.encoded["price"] == (row.row.encoded["price"], price)


def test_a_row_that_the_featurizer_refuses_is_named_and_its_neighbours_are_not(engine, served):
    bad = replace(served[9], raw=served[9].raw | {"picture": [0.5]})
    _, differences = replayed(engine, [*served[:9], bad, *served[10:]])
    assert [(d.row, list(d.encoded)) for d in differences] == [(bad, ["the row"])]


def test_rankings_and_frames_replay_as_rows_do(engine, tmp_path):
    rows = make_log(30, 4).drop("click", "buy")
    sides = engine.wire.sides
    once = {c.name for c in sides.user} | {"browser", "tags", "age", "price"}
    mine = [c for c in rows.columns if c in once]
    theirs = [c for c in rows.columns if c not in mine]
    user, candidates = rows[3].select(mine), rows.select(theirs)
    for place, (one, many) in enumerate(
        [(user, candidates), (user.to_dicts(), candidates.to_dicts())]
    ):
        log = started(engine, tmp_path / str(place), every=7)
        batch = engine.encode_rank(one if place == 0 else one[0], many)
        log.offer(raw_rows(one, many), batch, engine.score(batch))
        log.close()
        found = read(tmp_path / str(place))
        assert [r.raw["ad"] for r in found] == rows["ad"].to_list()[::7]
        assert {r.raw["price"] for r in found} == {rows["price"][3]}
        assert replayed(engine, found)[1] == []
    assert [r.encoded for r in read(tmp_path / "0")] == [r.encoded for r in read(tmp_path / "1")]


def test_a_history_with_a_missing_column_reads_as_empty_on_both_sides():
    past = History(
        name="past",
        events=(Event(name="item", column="ads", table="ad"), Event(name="time", column="when")),
        optional=True,
    )
    hidden = Event(name="item", column="ads", table="ad", redact=True)
    train = pl.DataFrame(
        {"ad": [1, 2], "ads": [[1, 2], [2]], "when": [[5, 6], [7]], "click": [0, 1]}
    )
    for history in (past, replace(past, events=(hidden, past.events[1]))):
        spec = Spec(columns=(Category(name="ad"), history, Target(name="click")))
        featurizer = Featurizer.fit(spec, train.lazy())
        rows = [{"ad": 1, "ads": [1, 2, 9], "when": [1, 2, 3]}, {"ad": 2, "ads": [1]}, {"ad": 2}]
        found = []
        for i, row in enumerate(rows):
            batch = featurizer(pl.DataFrame({name: [value] for name, value in row.items()}))
            kept, (encoded,) = shadow._keeper(spec)(row), shadow.encoded_rows(batch)
            assert i == 0 or kept == {"ad": 2}
            found.append(Row(str(i), kept, encoded, {}))
        assert found[0].encoded["past"]["time"] == [1, 2, 3]
        replay = Replay(featurizer, lambda batch: {})
        assert replay.check(found) == []
        odd = found[0].encoded["past"] | {"time": [1, 2, 4]}
        wrong = replace(found[0], encoded=found[0].encoded | {"past": odd})
        assert len(replay.check([wrong])) == 1


# ---- which rows


def test_every_nth_row_counted_over_all_requests(engine, tmp_path):
    log = started(engine, tmp_path, every=7)
    rows = make_log(60, 6).drop("click", "buy").with_columns(price=pl.arange(0, 60) * 1.0)
    start = 0
    for size in (1, 5, 20, 3, 31):
        serve(engine, log, rows[start : start + size].to_dicts())
        start += size
    log.close()
    assert [r.raw["price"] for r in read(tmp_path)] == [float(i) for i in range(0, 60, 7)]


# ---- redaction


def test_a_redacted_value_never_reaches_the_disk(engine, served, tmp_path):
    found = b"".join(p.read_bytes() for p in (tmp_path / "log").iterdir())
    texts = [SECRET.encode(), json.dumps(SECRET)[1:-1].encode(), b"geheim", str(AGE).encode()]
    texts.append(str(EVENT).encode())
    there = [text in found for text in texts]
    if not engine_hides(engine):
        assert there == [False, True, True, True, True]  # the search itself works
        return
    assert there == [False] * 5
    assert all(f'"u{i}"'.encode() not in found for i in range(20))
    assert not {"user", "age", "tags", "past"} & {n for row in served for n in row.raw}
    assert json.loads(found.splitlines()[0])["redacted"] == sorted(HIDDEN)
    words = engine.featurizer.vocabularies["user"]
    assert [row.encoded["user"] for row in served[:2]] == words.rows(
        pl.Series([r["user"] for r in requests()[:2]])
    ).tolist()


def test_labels_and_what_the_spec_does_not_know_are_not_kept(engine, tmp_path):
    rows = make_log(3, 8).with_columns(note=pl.lit("a private note"))
    batch = engine.predictor.encode(rows)
    log = started(engine, tmp_path)
    log.offer(raw_rows(rows), batch, engine.score(batch))
    log.close()
    assert not {"note", "click", "buy"} & read(tmp_path)[0].raw.keys()
    assert b"private" not in log_files(tmp_path)[0].read_bytes()


def test_what_a_model_reads_as_it_is_cannot_be_redacted():
    with pytest.raises(SchemaError, match="'age'"):
        Number(name="age", transform="none", redact=True)
    with pytest.raises(SchemaError, match="'times'"):
        Event(name="time", column="times", redact=True)


def test_specs_without_redaction_keep_their_text_and_others_come_back():
    assert "redact" not in json.dumps(spec_to_dict(SPEC))
    hidden = redacting(SPEC)
    assert hidden.redacted() == frozenset(HIDDEN)
    assert json.dumps(spec_to_dict(hidden)).count("redact") == len(HIDDEN)
    for spec in (SPEC, hidden):
        assert spec_from_dict(json.loads(json.dumps(spec_to_dict(spec)))) == spec
    log = make_log(50).lazy()
    assert Featurizer.fit(SPEC, log).fingerprint() != Featurizer.fit(hidden, log).fingerprint()
    assert Featurizer.fit(SPEC, log).schema == Featurizer.fit(hidden, log).schema


# ---- files


def test_the_folder_stays_within_its_bytes_and_keeps_the_newest(engine, tmp_path):
    other = tmp_path / "notes.txt"
    other.write_text("mine")
    logs = [started(engine, tmp_path, max_bytes=1 << 20) for _ in range(2)]
    rows = make_log(500, 9).drop("click", "buy")
    batch = engine.encode_rows(rows.to_dicts())
    scores = engine.score(batch)
    for i in range(20):
        frame = rows.with_columns(price=pl.lit(float(i)))
        logs[i % 2].offer(raw_rows(frame), batch, scores)
        wait(lambda log=logs[i % 2]: log._waiting == 0)
        assert sum(p.stat().st_size for p in log_files(tmp_path)) <= 1 << 20
    for log in logs:
        log.close()
    sizes = [p.stat().st_size for p in log_files(tmp_path)]
    assert sum(sizes) > 0.8 * (1 << 20)
    assert sum(log.written for log in logs) == 10_000
    kept = read(tmp_path)
    assert {19.0} < {r.raw["price"] for r in kept} < {float(i) for i in range(20)}
    assert other.read_text() == "mine"
    assert {p.stat().st_mode & 0o777 for p in log_files(tmp_path)} == {0o600}


def wait(done: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not done():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_a_file_that_somebody_removed_is_begun_again(engine, tmp_path):
    log = started(engine, tmp_path)
    serve(engine, log, requests(10))
    wait(lambda: log._waiting == 0)
    log_files(tmp_path)[0].unlink()
    serve(engine, log, requests(10))
    log.close()
    assert len(read(tmp_path)) == 10


def test_a_half_written_last_line_is_left_out_wherever_it_ends(engine, served, tmp_path):
    path = log_files(tmp_path / "log")[0]
    whole = path.read_bytes()
    start = whole[:-1].rindex(b"\n") + 1
    for cut in [start + 1, (start + len(whole)) // 2, len(whole) - 1]:
        path.write_bytes(whole[:cut])
        log = Log.open(path)
        assert [*log.rows()] == served[:-1]
        assert log.half == 1
    path.write_bytes(whole[:50])
    assert (Log.open(path).header, Log.open(path).half) == ({}, 1)


def test_a_killed_process_leaves_rows_that_replay(log, tmp_path):
    artifact = make_artifact("din", log)
    artifact.save(tmp_path / "artifact")
    log.write_parquet(tmp_path / "log.parquet")
    code = """
        import sys, polars as pl
        from pathlib import Path
        from fullrank.serve.engine import Engine
        from fullrank.serve.shadow import ShadowConfig, ShadowLog, raw_rows
        engine = Engine.load(Path(sys.argv[1]) / "artifact")
        config = ShadowConfig(folder=Path(sys.argv[1]) / "shadow", every=1)
        log = ShadowLog(config, engine.artifact, engine.fingerprint)
        rows = pl.read_parquet(Path(sys.argv[1]) / "log.parquet").drop("click", "buy")
        batch = engine.encode_rows(rows)
        scores = engine.score(batch)
        while True:
            log.offer(raw_rows(rows), batch, scores)
            print(log.written, flush=True)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", dedent(code), str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for said in process.stdout:
        if int(said) > 1000:
            break
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    rows = read(tmp_path / "shadow")
    assert len(rows) > 1000
    predictor = Predictor.load(tmp_path / "artifact")
    replay = Replay(predictor.artifact.featurizer, lambda b: calibrated(predictor.logits(b), {}))
    assert replay.check(rows[-300:]) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"user": 10**6}, "of 21"),
        ({"user": -1}, "-1"),
        ({"user": 1.5}, "no number"),
        ({"user": 2**40}, "int"),
        ({"price": "1"}, "no number"),
        ({"tags": 3}, "without its list"),
        ({"picture": [1.0]}, "numbers in a vector|inhomogeneous"),
        ({"past": {}}, "no 'item'"),
    ],
)
def test_numbers_that_do_not_fit_the_artefact_are_refused(engine, served, change, said):
    with pytest.raises(DataFormatError, match=said):
        replayed(engine, [replace(served[0], encoded=served[0].encoded | change)])
    if "picture" in change:
        one = [replace(r, encoded=r.encoded | change) for r in served]
        with pytest.raises(DataFormatError, match="1 numbers in a vector"):
            replayed(engine, one)


@pytest.mark.parametrize("text", ["{}", "[1]", "nothing", '{"fullrank":"shadow log"}', "[" * 10**5])
def test_another_file_is_refused(tmp_path, text):
    (tmp_path / "a.jsonl").write_text(text + "\n")
    with pytest.raises(DataFormatError, match=r"a\.jsonl, line 1"):
        Log.open(tmp_path / "a.jsonl")


def test_a_damaged_line_in_the_middle_is_refused_by_its_number(engine, served, tmp_path):
    path = log_files(tmp_path / "log")[0]
    lines = path.read_bytes().splitlines(keepends=True)
    for damaged in (lines[5][:30] + b"\n", b'{"raw": {}, "encoded": [], "scores": {}}\n'):
        path.write_bytes(b"".join([*lines[:5], damaged, *lines[6:]]))
        with pytest.raises(DataFormatError, match="line 6"):
            list(Log.open(path).rows())


# ---- never in the way


def test_a_disk_that_waits_blocks_no_offer_and_what_is_dropped_is_counted(
    engine, tmp_path, monkeypatch
):
    let_go, write = threading.Event(), os.write

    def slow(handle: int, data: bytes) -> int:
        assert let_go.wait(20)
        return write(handle, data)

    monkeypatch.setattr(shadow.os, "write", slow)
    monkeypatch.setattr(shadow, "_MOST_WAITING", 50)
    log = started(engine, tmp_path)
    rows = make_log(20, 1).drop("click", "buy")
    batch = engine.encode_rows(rows)
    scores = engine.score(batch)
    for _ in range(10):  # an offer that waited would wait for ever
        log.offer(raw_rows(rows), batch, scores)
    assert log.dropped == 160
    let_go.set()
    log.close()
    assert (log.written, log.dropped) == (40, 160)
    assert len(read(tmp_path)) == 40


def test_a_full_disk_costs_rows_and_half_a_line_and_then_it_goes_on(engine, tmp_path, monkeypatch):
    write, full = os.write, threading.Event()

    def partly(handle: int, data: bytes) -> int:
        return write(handle, data[:20] if full.is_set() else data)

    monkeypatch.setattr(shadow.os, "write", partly)
    monkeypatch.setattr(shadow, "_PAUSE_SECONDS", 0.0)
    log = started(engine, tmp_path)
    serve(engine, log, requests(10))
    wait(lambda: log.written == 10)
    full.set()
    serve(engine, log, requests(10))
    wait(lambda: log.dropped == 10)
    full.clear()
    serve(engine, log, requests(10))
    log.close()
    assert (log.written, log.dropped) == (20, 10)
    assert len(read(tmp_path)) == 20


def test_a_folder_that_cannot_be_made_costs_rows_only(engine, tmp_path):
    (tmp_path / "file").touch()
    log = started(engine, tmp_path / "file" / "log")
    serve(engine, log, requests(10))
    log.close()
    assert (log.written, log.dropped) == (0, 10)


def test_what_json_cannot_hold_is_dropped_and_counted(engine, tmp_path):
    rows = make_log(3, 1).drop("click", "buy")
    batch = engine.encode_rows(rows)
    log = started(engine, tmp_path)
    odd = [row | ({"price": object()} if i == 1 else {}) for i, row in enumerate(rows.to_dicts())]
    log.offer(raw_rows(odd), batch, engine.score(batch))
    log.close()
    assert (log.written, log.dropped) == (2, 1)


@pytest.mark.parametrize("wrong", [{"every": 0}, {"max_bytes": 1000}])
def test_settings_are_checked(tmp_path, wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        ShadowConfig(folder=tmp_path, **wrong)
