"""Arrow files that claim more than they are: refused before memory is taken; our own are read."""

from __future__ import annotations

import contextlib
import io
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from fullrank.data.arrow_ipc import decoded_bytes, file_messages, is_compressed, messages
from fullrank.data.vocab import Vocabulary
from fullrank.errors import ArtifactError

MEGABYTE = 1 << 20


def written(table: pa.Table, compression: str | None = None, times: int = 1) -> bytes:
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_file(sink, table.schema, options=options) as writer:
        for _ in range(times):
            writer.write_table(table)
    return sink.getvalue().to_pybytes()


def vocabulary(values: list[object], counts: list[object] | None = None) -> pa.Table:
    return pa.table({"value": values, "count": counts or [1] * len(values)})


def zeros(rows: int) -> pa.Table:
    column = pa.array(np.zeros(rows, dtype=np.int64))
    return pa.table({"value": column, "count": column})


def refused(path: Path) -> str:
    with pytest.raises(ArtifactError) as caught:
        Vocabulary.load(path, 0)
    return caught.value.found


@pytest.mark.parametrize("codec", ["zstd", "lz4", "uncompressed"])
@pytest.mark.parametrize("rows", [0, 1, 300_000])
@pytest.mark.parametrize("text", [False, True])
def test_what_polars_writes_is_read_and_its_claims_are_true(tmp_path, codec, rows, text):
    values = pl.Series(range(rows), dtype=pl.Int64)
    frame = pl.DataFrame({"value": values, "count": values})
    if text:
        frame = frame.with_columns(pl.format("a name of an ad {}", "value").alias("value"))
    frame.write_ipc(tmp_path / "v.arrow", compression=codec)
    read = Vocabulary.load(tmp_path / "v.arrow", 3)
    assert read.values.equals(frame["value"])
    assert read.values.dtype == frame["value"].dtype
    assert np.array_equal(read.counts, frame["count"].to_numpy())
    plain = io.BytesIO()
    frame.write_ipc(plain, compression="uncompressed")
    claimed = [
        sum(map(decoded_bytes, file_messages(content)))
        for content in ((tmp_path / "v.arrow").read_bytes(), plain.getvalue())
    ]
    assert claimed[0] == claimed[1] <= len(plain.getvalue())
    assert claimed[0] >= 16 * rows


def test_names_that_pack_too_well_are_written_plainly(tmp_path, monkeypatch):
    names = [f"{'one long beginning ' * 20}{i}" for i in range(2000)]
    table = Vocabulary(pl.Series(names), np.ones(2000, dtype=np.int64))
    table.save(tmp_path / "packed.arrow")
    monkeypatch.setattr("fullrank.data.vocab._MOST_DECODED", 1000)
    monkeypatch.setattr("fullrank.data.vocab._MOST_RATIO", 3)
    assert "packed" in refused(tmp_path / "packed.arrow")
    table.save(tmp_path / "plain.arrow")
    assert Vocabulary.load(tmp_path / "plain.arrow", 0).values.to_list() == names


def peak_megabytes(path: Path) -> tuple[str, int]:
    """Loads a vocabulary in a process of its own; returns what was said, and the growth."""
    code = (
        "import re, sys\n"
        "from pathlib import Path\n"
        "from fullrank.data.vocab import Vocabulary\n"
        "from fullrank.errors import ArtifactError\n"
        "Vocabulary.load(Path(sys.argv[1]), 0)\n"
        # trap: ru_maxrss of a child starts at its parent's peak
        "def peak():\n    said = Path('/proc/self/status').read_text()\n"
        "    return int(re.search(r'VmHWM:\\s+(\\d+)', said)[1])\n"
        "before = peak()\n"
        "try:\n    Vocabulary.load(Path(sys.argv[2]), 0)\n"
        "except ArtifactError as error:\n    print(error.found)\n"
        "print((peak() - before) >> 10)\n"
    )
    good = path.with_name("good.arrow")
    good.write_bytes(written(vocabulary([1, 2, 3])))
    command = [sys.executable, "-c", code, str(good), str(path)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return " ".join(said[:-1]), int(said[-1])


def test_a_bomb_is_refused_before_it_goes_off(tmp_path):
    # a gigabyte of zeros
    bomb, control = tmp_path / "bomb.arrow", tmp_path / "control.arrow"
    bomb.write_bytes(written(zeros(4 * MEGABYTE), "zstd", times=16))
    assert bomb.stat().st_size < 2 * MEGABYTE
    said, grown = peak_megabytes(bomb)
    assert f"{1 << 30:,} bytes" in said
    assert grown < 32
    control.write_bytes(written(zeros(4 * MEGABYTE)))  # 64 MB that are really there
    said, grown = peak_megabytes(control)
    assert "stands twice" in said
    assert grown > 60  # the measurement can tell


def test_a_forged_length_is_refused_before_it_is_believed(tmp_path):
    content = bytearray(written(vocabulary(list(range(5000))), "zstd"))
    at = content.index(
        struct.pack("<q", 8 * 5000) + b"\x28\xb5\x2f\xfd"
    )  # length, then zstd's mark
    for claimed in (1 << 40, 1 << 62, -2, -(1 << 63)):
        content[at : at + 8] = struct.pack("<q", claimed)
        (tmp_path / "forged.arrow").write_bytes(content)
        said, grown = peak_megabytes(tmp_path / "forged.arrow")
        assert f"{claimed:,}" in said or f"{claimed + 8 * 5000:,}" in said
        assert grown < 32


@pytest.mark.parametrize(
    "table",
    [
        vocabulary(["a", "a"]),
        vocabulary(["a", None]),
        vocabulary(["a", "b"], [1, None]),
        vocabulary(["a", "b"], [1.0, 2.0]),
        vocabulary([0.5, 1.5]),
        vocabulary([["a"], ["b"]]),
        vocabulary([None, None]),
        pa.table({"value": ["a"]}),
        pa.table({"value": ["a"], "count": [1], "more": [2]}),
        pa.table({"value": pa.array(["a"]).dictionary_encode(), "count": [1]}),
        pa.table({"value": pa.array([b"\xff"]).view(pa.string()), "count": [1]}),
    ],
    ids=str,
)
def test_other_contents_are_refused(tmp_path, table):
    (tmp_path / "v.arrow").write_bytes(written(table))
    assert refused(tmp_path / "v.arrow")


def test_no_bent_file_gets_through_without_a_word(tmp_path):
    rng, path = np.random.default_rng(0), tmp_path / "v.arrow"
    Vocabulary(pl.Series([f"u{i}" for i in range(50)]), np.arange(50)).save(path)
    whole = path.read_bytes()
    read = 0
    for _ in range(1500):
        bent = bytearray(whole)
        at = int(rng.integers(len(bent) - 8))
        piece = [b"\xff" * 4, b"\x00" * 8, b"\xff\xff\xff\x7f", rng.bytes(1), rng.bytes(8)]
        some = piece[rng.integers(5)]
        bent[at : at + len(some)] = some
        path.write_bytes(bent[: rng.integers(len(bent))] if rng.random() < 0.2 else bent)
        with contextlib.suppress(ArtifactError):
            assert len(Vocabulary.load(path, 0).values) <= 50
            read += 1
    assert 0 < read < 1000


def test_streams_tell_whether_they_are_compressed():
    for codec in (None, "zstd", "lz4"):
        sink = pa.BufferOutputStream()
        options = pa.ipc.IpcWriteOptions(compression=codec)
        table = zeros(1000)
        with pa.ipc.new_stream(sink, table.schema, options=options) as writer:
            writer.write_table(table)
        found = list(messages(pa.BufferReader(sink.getvalue())))
        assert [m.type for m in found] == ["schema", "record batch"]
        assert [is_compressed(m) for m in found] == [False, codec is not None]
        assert [decoded_bytes(m) for m in found] == [0, 16_000]
