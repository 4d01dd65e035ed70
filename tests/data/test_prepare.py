from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from fullrank.data import columns as columns_module
from fullrank.data.loader import Loader
from fullrank.data.prepare import Prepared, prepare
from fullrank.data.spec import Category, Event, History, Spec, Tags, Target
from fullrank.errors import ArtifactError, ConfigError, DiskFullError, SplitError, StateError

SPEC = Spec(
    columns=(
        Category(name="user"),
        Tags(name="tags"),
        History(name="past", events=(Event(name="item", column="items", table="item"),)),
        Target(name="click"),
        Target(name="buy", given="click", observed="known"),
    ),
    time="ts",
    weight="w",
)


def log(rows: int, seed: int = 0) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    return pl.DataFrame(
        {
            "user": rng.integers(0, 50, rows),
            "tags": [
                "|".join(map(str, rng.integers(0, 9, rng.integers(0, 4)))) for _ in range(rows)
            ],
            "items": [rng.integers(0, 30, rng.integers(0, 6)).tolist() for _ in range(rows)],
            "click": rng.integers(0, 2, rows),
            "buy": rng.integers(0, 2, rows),
            "known": rng.random(rows) < 0.8,
            "ts": np.arange(rows),
            "w": rng.random(rows) + 0.5,
        },
        schema_overrides={"items": pl.List(pl.Int64)},
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Prepared, pl.DataFrame]:
    frame = log(9001)
    folder = tmp_path_factory.mktemp("prepared") / "data"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(columns_module, "_CHUNK_ROWS", 1000)  # several chunks per split
        patch.setattr(columns_module, "_REST_ROWS", 700)
        return prepare({"train": frame.lazy(), "test": log(10, 1).lazy()}, SPEC, folder), frame


def assert_same(a, b) -> None:
    for part in ("categorical", "numeric", "labels", "observed"):
        assert torch.equal(getattr(a, part).block, getattr(b, part).block), part
    for part in ("weight", "group", "time"):
        assert torch.equal(getattr(a, part), getattr(b, part)), part
    for kind in ("bags", "sequences"):
        for name, jagged in getattr(a, kind).items():
            assert torch.equal(jagged.offsets, getattr(b, kind)[name].offsets)
            for column, values in jagged.values.items():
                assert torch.equal(values, getattr(b, kind)[name].values[column])


def test_what_is_on_disk_equals_encoding_the_raw_rows(made) -> None:
    prepared, frame = made
    split = prepared.splits["train"]
    assert len(split) == len(frame)
    assert_same(split.batch(0, len(frame)), prepared.featurizer(frame))
    assert_same(split.batch(995, 1007), prepared.featurizer(frame[995:1007]))
    apart = split.read((995, 1007), (9000, 9001), (3, 3), (0, 2)).batch(split.schema)
    assert_same(apart, prepared.featurizer(pl.concat([frame[995:1007], frame[9000:], frame[:2]])))
    assert prepared.splits["test"].rows == 10
    counts = prepared.counts("user")
    raw = prepared.featurizer(frame).categorical["user"]
    assert counts.tolist() == torch.bincount(raw.long(), minlength=len(counts)).tolist()


@pytest.mark.parametrize("buffer_bytes", [1 << 30, 300_000, 1])
def test_every_row_comes_once_and_whole(made, buffer_bytes: int) -> None:
    prepared, frame = made
    loader = Loader(prepared.splits["train"], 512, seed=5, buffer_bytes=buffer_bytes)
    batches = list(loader)
    assert [len(b) for b in batches] == [512] * 17 + [9001 - 17 * 512]
    assert len(batches) == len(loader)
    times = torch.cat([b.time for b in batches])
    assert sorted(times.tolist()) == list(range(9001))
    for b in batches[::6]:
        assert_same(b, prepared.featurizer(frame[b.time.numpy()]))


def test_shuffles_anew_each_epoch_and_again_from_the_same_seed(made) -> None:
    split = made[0].splits["train"]
    loader = Loader(split, 1000, seed=1)
    first, second = (torch.cat([b.time for b in loader]) for _ in range(2))
    again = Loader(split, 1000, seed=1)
    other = Loader(split, 1000, seed=2)
    assert not torch.equal(first, second)
    assert torch.equal(first, torch.cat([b.time for b in again]))
    assert not torch.equal(first, torch.cat([b.time for b in other]))
    # An exact shuffle moves a row by a third of the length on average; none moves by nothing.
    moved = (first - torch.arange(len(first))).abs().double().mean() / len(first)
    assert 0.30 < moved < 0.37
    ordered = Loader(split, 1000, shuffle=False)
    assert torch.equal(torch.cat([b.time for b in ordered]), torch.arange(9001))


@pytest.mark.parametrize("buffer_bytes", [1 << 30, 300_000])
@pytest.mark.parametrize("stop", [0, 1, 9, 17])
def test_resumes_at_the_very_batch(made, buffer_bytes: int, stop: int) -> None:
    split = made[0].splits["train"]
    whole = Loader(split, 512, seed=5, buffer_bytes=buffer_bytes)
    whole.epoch = 3
    expected = list(whole)
    broken = Loader(split, 512, seed=5, buffer_bytes=buffer_bytes)
    broken.epoch = 3
    running = iter(broken)
    for _ in range(stop):
        next(running)
    resumed = Loader(split, 512, seed=5, buffer_bytes=buffer_bytes)
    resumed.resume(broken.state())
    rest = list(resumed)
    assert len(rest) == len(expected) - stop
    for a, b in zip(expected[stop:], rest, strict=True):
        assert_same(a, b)
    assert resumed.state() == whole.state()


def test_refuses_a_position_of_another_loader(made) -> None:
    split = made[0].splits["train"]
    with pytest.raises(StateError, match="another loader"):
        Loader(split, 512, seed=5).resume(Loader(split, 256, seed=5).state())
    with pytest.raises(ConfigError):
        Loader(split, 0)


def test_an_empty_split_leaves_nothing_behind(tmp_path: Path) -> None:
    frame = log(20)
    with pytest.raises(SplitError, match="empty"):
        prepare({"train": frame.lazy(), "valid": frame.lazy().filter(False)}, SPEC, tmp_path / "d")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: object, array: np.ndarray) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(columns_module._BlockWriter, "append", full)
    with pytest.raises(DiskFullError) as caught:
        prepare({"train": log(20).lazy()}, SPEC, tmp_path / "d")
    assert str(tmp_path / "d") in caught.value.where
    assert list(tmp_path.iterdir()) == []


def test_changed_folders_are_refused(tmp_path: Path) -> None:
    prepare({"train": log(50).lazy()}, SPEC, tmp_path / "d")
    labels = tmp_path / "d" / "train" / "labels.npy"
    kept = labels.read_bytes()
    labels.write_bytes(kept[:-8])
    with pytest.raises(ArtifactError):
        Prepared.open(tmp_path / "d")
    labels.write_bytes(kept)
    Prepared.open(tmp_path / "d")
    user = tmp_path / "d" / "train" / "categorical-0.npy"
    kept = user.read_bytes()
    for other in (np.zeros(50, np.int16), np.zeros(49, np.uint8), np.zeros((50, 1), np.uint8)):
        np.save(user, other)
        with pytest.raises(ArtifactError):
            Prepared.open(tmp_path / "d")
    user.write_bytes(kept)
    Prepared.open(tmp_path / "d")
    manifest = tmp_path / "d" / "manifest.json"
    text = manifest.read_text()
    for right, wrong in (
        ('"labels"', '"../labels"'),
        ('"categorical-0"', '"../train/categorical-0"'),
        ('"categorical-0"', '"categorical-1"'),
        ('"format": 2', '"format": 1'),
    ):
        assert right in text
        manifest.write_text(text.replace(right, wrong))
        with pytest.raises(ArtifactError):
            Prepared.open(tmp_path / "d")
    manifest.write_text(text)
    np.save(user, np.zeros(50, np.int16))  # even where the manifest says the same
    manifest.write_text(text.replace('"uint8"', '"int16"'))
    with pytest.raises(ArtifactError, match="categorical column"):
        Prepared.open(tmp_path / "d")
