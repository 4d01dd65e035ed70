"""Bodies that cannot be read are refused with their place, and little of them is repeated."""

from __future__ import annotations

import json
import struct

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fullrank.errors import ArtifactError, DataFormatError, RequestError
from fullrank.serve.arrow_body import read_streams, write_stream
from fullrank.serve.problem import problem
from fullrank.serve.wire import Wire

from .conftest import SPEC

WIRE = Wire(SPEC, 10)
ROW = {"user": "u1", "ad": 1, "price": 1.5}
LONG = "x" * 5000


def body(*rows: object, **more: object) -> bytes:
    return json.dumps({"rows": list(rows), **more}).encode()


def test_a_right_body_is_read():
    read = WIRE.score_request(
        body(ROW, ROW | {"age": 2, "past": [1, 2], "click": {"any": "thing"}})
    )
    assert (read.rows, sorted(read.columns)) == (2, ["ad", "age", "past", "price", "user"])
    assert read.columns["age"] == (None, 2.0)
    user = {"user": "u1", "price": 1}
    request = {"user": user, "candidates": [{"ad": 1}, {"ad": 2}], "bids_micros": [5, 7]}
    one, many, bids = WIRE.auction_request(json.dumps(request).encode())
    assert (one.rows, many.rows, bids) == (1, 2, [5, 7])
    assert (one.columns, many.columns) == ({"user": ("u1",), "price": (1.0,)}, {"ad": (1, 2)})


BAD = [
    (b"", 400, "body"),
    (b"{", 400, "body"),
    (b"[]", 422, "body"),
    (b"\xff\xfe", 400, "body"),
    (body(ROW) + b"x", 400, "body"),
    (b"\xef\xbb\xbf" + body(ROW), 400, "body"),
    (body(ROW)[:-9] + b'"\xc3\x28"}]}', 400, "body"),
    (b'{"rows": [{"user": "\\ud800"}]}', 400, "body"),
    (body(ROW | {"price": float("nan")}), 400, "body"),
    (body(ROW).replace(b"1.5", b"1e999"), 422, "rows[0].price"),
    (body(ROW).replace(b"1.5", b"9" * 6000), 422, "rows[0].price"),
    (body(ROW).replace(b"1.5", b"[" * 100_000), 422, "rows[0].price"),
    (body(ROW | {"click": 0}).replace(b'k": 0', b'k": ' + b"[" * 100_000), 400, "body"),
    (body(ROW | {"click": 0}).replace(b'k": 0', b'k": ' + b'{"a":' * 100_000), 400, "body"),
    (body(ROW | {"price": "1.5"}), 422, "rows[0].price"),
    (body(ROW | {"price": True}), 422, "rows[0].price"),
    (body(ROW, ROW | {"user": {}}), 422, "rows[1].user"),
    (body(ROW | {"user": [1]}), 422, "rows[0].user"),
    (body(ROW | {"past": [[1]]}), 422, "rows[0].past[0]"),
    (body(ROW | {"past": 3}), 422, "rows[0].past"),
    (body(ROW | {"picture": [1, 2, 3]}), 422, "rows[0].picture"),
    (body(ROW | {"weather": 1}), 422, "rows[0]"),
    (body(ROW | {LONG: 1}), 422, "rows[0]"),
    (body(ROW | {"a\nb\x00": 1}), 422, "rows[0]"),
    (body({"user": "u1", "price": 1}), 422, "rows[0]"),
    (body(ROW, None), 422, "rows[1]"),
    (body(ROW, more=1), 422, "body"),
    (b"{}", 422, "body"),
    (b'{"rows": 3}', 422, "rows"),
    (body(), 422, "rows"),
    (body(*[ROW] * 11), 413, "rows"),
]


@pytest.mark.parametrize(("text", "status", "where"), BAD, ids=range(len(BAD)))
def test_a_bad_body_is_refused_with_its_place(text, status, where):
    with pytest.raises(RequestError) as caught:
        WIRE.score_request(text)
    assert caught.value.status == status
    assert caught.value.where.endswith(where)
    members = problem(caught.value)
    assert all(str(members[part]) for part in ("title", "where", "found", "expected", "fix"))
    assert len(members["found"]) <= 100
    assert all(len(v) <= 400 and v.isprintable() for v in members.values() if isinstance(v, str))
    assert LONG[:101] not in json.dumps(members)


def test_the_nearest_field_is_suggested_and_a_misplaced_one_is_told():
    with pytest.raises(RequestError) as caught:
        WIRE.score_request(body(ROW | {"prise": 1}))
    assert "'price'" in caught.value.fix
    request = {"user": {"user": "u1", "ad": 1}, "candidates": [{"ad": 1, "price": 1}]}
    with pytest.raises(RequestError) as caught:
        WIRE.rank_request(json.dumps(request).encode())
    assert (caught.value.what, caught.value.found) == ("a field stands in the wrong place", "ad")


@pytest.mark.parametrize("bid", [-1, 1.5, "1", None, 10**15 + 1, True])
def test_a_bid_is_a_whole_number_of_micro_units(bid):
    request = {"user": {"user": "u", "price": 1}, "candidates": [{"ad": 1}], "bids_micros": [bid]}
    with pytest.raises(RequestError) as caught:
        WIRE.auction_request(json.dumps(request).encode())
    assert caught.value.where == "bids_micros[0]"


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60), st.integers(0, 200), st.integers(0, 20))
def test_any_damage_to_a_body_is_refused_or_read(noise, at, cut):
    whole = body(ROW, ROW | {"tags": ["t1"], "past": [1, 2]})
    damaged = whole[:at] + noise + whole[at + cut :]
    try:
        rows, refused = WIRE.score_request(damaged).rows, None
    except RequestError as error:
        rows, refused = 1, error.status
    assert 1 <= rows <= 10
    assert refused in (None, 400, 413, 422)


# ---- Arrow

FRAME = pl.DataFrame(
    {"user": ["u1", None], "ad": [1, 2], "price": [1.0, 2.0], "past": [[1], [2, 3]]}
)


def stream(table: pa.Table, **options: object) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def test_streams_are_read_back():
    first, second = stream(FRAME.to_arrow()), stream(FRAME[:1].to_arrow())
    assert read_streams(first, 1, 10)[0].equals(FRAME)
    found = read_streams(first + second, 2, 10)
    assert [f.equals(g) for f, g in zip(found, [FRAME, FRAME[:1]], strict=True)] == [True, True]
    words = pa.table({"user": pa.array(["a", "b", "a"]).dictionary_encode()})
    assert read_streams(stream(words), 1, 10)[0]["user"].cast(pl.String).to_list() == [
        "a",
        "b",
        "a",
    ]
    answer = write_stream({"click": np.float32([0.5])}, {"model": "m"})
    assert pa.ipc.open_stream(answer).read_all().to_pydict() == {"click": [0.5]}


def test_a_name_inside_of_a_type_may_be_no_text():
    table = pa.table({"past": pa.array([[1], [2, 3]], pa.list_(pa.field("abcdefgh", pa.int64())))})
    whole = stream(table)
    assert whole.count(b"abcdefgh") == 1
    frame = read_streams(whole.replace(b"abcdefgh", b"\xff\xfe\xfd\xfcefgh"), 1, 10)[0]
    assert frame["past"].to_list() == [[1], [2, 3]]


def lying() -> bytes:
    """Offsets that point outside of the values."""
    lists = pa.array([[1], [2, 3]], pa.list_(pa.int64()))
    whole = stream(pa.table({"past": lists}))
    true, false = struct.pack("<iii", 0, 1, 3), struct.pack("<iii", 0, 1, 10**6)
    assert whole.count(true) == 1
    return whole.replace(true, false)


ARROW = {
    "empty": b"",
    "json": body(ROW),
    "cut": stream(FRAME.to_arrow())[:-40],
    "more": stream(FRAME.to_arrow()) + b"x" * 64,
    "zstd": stream(FRAME.to_arrow(), compression="zstd"),
    "lz4": stream(FRAME.to_arrow(), compression="lz4"),
    "zstd words": stream(
        pa.table({"user": pa.array(["abc" * 99] * 3).dictionary_encode()}), compression="zstd"
    ),
    "rows": stream(pa.table({"user": ["u"] * 11})),
    "nulls": stream(pa.table({"user": pa.nulls(10**7)})),
    "twice": stream(pa.table([[1], [2]], names=["a", "a"])),
    "struct": stream(pa.table({"user": [{"a": 1}]})),
    "lists of lists": stream(pa.table({"past": [[[1]]]})),
    "time": stream(pa.table({"user": pa.array([1], pa.timestamp("s"))})),
    "offsets": lying(),
    "no text": stream(pa.table({"user": ["abcdefgh"]})).replace(
        b"abcdefgh", b"\xff\xfe\xfd\xfcefgh"
    ),
}


@pytest.mark.parametrize("name", ARROW)
def test_broken_and_unsafe_streams_are_refused(name):
    before = pa.total_allocated_bytes()
    with pytest.raises(RequestError) as caught:
        read_streams(ARROW[name], 1, 10)
    assert caught.value.status == (413 if name in ("rows", "nulls") else 400)
    assert pa.total_allocated_bytes() - before < 1 << 20


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_damage_to_a_stream_is_refused_or_read(data):
    whole = bytearray(stream(FRAME.to_arrow()))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try:
        rows, refused = len(read_streams(bytes(whole), 1, 10)[0]), None
    except RequestError as error:
        rows, refused = 0, error.status
    assert rows <= 10
    assert refused in (None, 400, 413)


# ---- problems


def test_a_problem_hides_folders_and_cuts_what_it_repeats():
    error = ArtifactError(
        "cannot load",
        where="/srv/secret place/models/a/weights.safetensors",
        found="sha256 of /home/me/x.bin and C:\\Users\\me\\x.bin",
        expected="e",
        fix="f",
    )
    members = problem(error, ("/srv/secret place/models/a",))
    assert members["status"] == 409
    text = json.dumps(members)
    for secret in ("secret", "models", "home", "Users", "/me"):
        assert secret not in text
    assert "weights.safetensors" in text
    long = problem(DataFormatError("w", where="column 'a'", found=LONG, expected="e", fix="f"))
    assert (long["status"], len(long["found"])) == (422, 100)
