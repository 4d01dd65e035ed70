"""Laws of every dataset, on invented files and on real ones where FULLRANK_DATA names them."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import polars as pl
import pytest

from fullrank.data.datasets import dataset, list_datasets, note
from fullrank.data.home import data_root
from fullrank.data.spec import Category, History, Number, Tags, Target, Vector
from fullrank.data.text import BadRows
from fullrank.errors import DataMissingError

# How each dataset is cut: by time, by place in the sequence of a user, by the order of a file that
# is in time order, or at random.
CUT = {
    "amazon_beauty": "place",
    "amazon_games": "place",
    "avazu": "time",
    "collm_ml1m": "time",
    "ml_100k": "time",
    "ml_100k_users": "time",
    "ml_1m": "time",
    "ml_1m_impressions": "place",
    "ml_20m": "time",
    "ml_latest": "time",
    "simulated": "time",
    "simulated_collapse": "time",
    "simulated_habits": "time",
    "criteo": "order",
    "census_income": "random",
    "frappe": "published",
    "frappe_log": "random",
    "ipinyou_sample": "random",
}
NAMES = list_datasets()


@pytest.fixture(scope="module")
def roots(tmp_path_factory) -> dict[str, Path]:
    found = {}
    for name in NAMES:
        found[name] = tmp_path_factory.mktemp(name)
        dataset(name).write_sample(found[name])
    return found


@cache
def real(name: str) -> dict[str, pl.DataFrame]:
    if not os.environ.get("FULLRANK_DATA"):
        pytest.skip(f"{name}: FULLRANK_DATA is not set, so there is no real data to look at")
    try:
        parts = dataset(name).load(data_root(), BadRows())
    except DataMissingError as error:
        pytest.skip(f"{name}: {error.what} ({error.where})")
    return {split: rows.collect(engine="streaming") for split, rows in parts.items()}


@pytest.fixture(params=["invented", "real"])
def splits(request, name, roots) -> dict[str, pl.DataFrame]:
    if request.param == "real":
        return real(name)
    parts = dataset(name).load(roots[name], BadRows())
    return {split: rows.collect() for split, rows in parts.items()}


def every(function):
    return pytest.mark.parametrize("name", NAMES)(function)


def test_every_dataset_says_how_it_is_cut():
    assert sorted(CUT) == NAMES


@every
def test_a_dataset_says_who_owns_it_and_where_it_lives(name):
    found = dataset(name)
    assert name == found.NAME
    assert found.TITLE
    assert found.LICENCE
    assert found.HOME.startswith("https://") or name.startswith("simulated")
    for file in found.FILES:
        assert file.url.startswith("https://")
        assert file.sha256 is None or len(file.sha256) == 64
        assert not Path(file.path).is_absolute()


@every
def test_every_column_is_accounted_for_and_splits_are_full(name, splits):
    spec = dataset(name).SPEC
    assert list(splits) == ["train", "valid", "test"]
    for rows in splits.values():
        assert rows.height > 0
        assert set(rows.columns) <= spec.accounted()
        needed = {column for column, optional in spec.raw_columns().items() if not optional}
        assert needed <= set(rows.columns)
    assert len({tuple(rows.schema.items()) for rows in splits.values()}) == 1


@every
def test_ignored_columns_have_reasons_and_are_not_read(name):
    spec = dataset(name).SPEC
    assert all(len(reason) > 10 for _, reason in spec.ignore)
    assert not {column for column, _ in spec.ignore} & set(spec.raw_columns())


@every
def test_labels_are_zero_and_one_and_no_field_equals_one(name, splits):
    spec = dataset(name).SPEC
    targets = [t.name for t in spec.targets()]
    assert targets
    rows = pl.concat(splits.values())
    fields = [c.name for c in spec.columns if not isinstance(c, (Target, History))]
    assert not set(targets) & set(fields)
    for target in spec.targets():
        known = rows.filter(pl.col(target.observed)) if target.observed else rows
        assert set(known[target.name].unique()) <= {0, 1}
        assert rows[target.name].n_unique() >= 2
        for column in spec.columns:  # does a value of the field ever decide the label everywhere?
            if isinstance(column, Category) and rows[column.name].n_unique() == 2:
                means = rows.group_by(column.name).agg(pl.col(target.name).mean())
                assert set(means[target.name]) != {0.0, 1.0}, column.name


@every
def test_columns_have_the_kind_that_the_spec_says(name, splits):
    rows = splits["train"]
    for column in dataset(name).SPEC.columns:
        if isinstance(column, Number):
            assert rows.schema[column.name].is_numeric()
            assert not rows[column.name].cast(pl.Float64).is_nan().any()
        elif isinstance(column, History):
            events = [rows[event.column] for event in column.events]
            assert all(isinstance(e.dtype, pl.List) for e in events)
            assert all((e.list.len() == events[0].list.len()).all() for e in events)
        elif isinstance(column, Category):
            assert not rows.schema[column.name].is_nested()
        elif isinstance(column, (Tags, Vector)):
            assert column.name in rows.columns


@every
def test_splits_never_look_ahead(name, splits):
    """Strictly: the youngest row of a split is older than the oldest of the next."""
    time = dataset(name).SPEC.time
    if CUT[name] != "time":
        assert not time  # a dataset with a time has no excuse
        return
    if pl.concat(splits.values())[time].n_unique() == 1:
        assert name == "avazu"  # its real sample is a single hour, and its note says so
        assert "sample" in note(name, data_root())
        return
    train, valid, test = (splits[s][time] for s in ("train", "valid", "test"))
    assert train.max() < valid.min()
    assert valid.max() < test.min()


@every
def test_no_event_is_as_late_as_its_impression(name, splits):
    spec = dataset(name).SPEC
    for history in spec.histories():
        for event in (e for e in history.events if e.name == "time"):
            for rows in splits.values():
                youngest = rows[event.column].list.max()
                assert (youngest < rows[spec.time]).all()


@every
def test_no_impression_stands_in_two_splits(name, splits):
    identity = list(dataset(name).SPEC.identity)
    if not identity:
        return
    rows = pl.concat(splits.values()).select(identity)
    assert rows.is_unique().all()


@every
def test_the_sample_is_what_load_yields(name, roots):
    found = dataset(name)
    sample = found.sample()
    loaded = found.load(roots[name], BadRows())["train"].collect()
    assert sample.schema == loaded.schema
    assert 100 <= sample.height <= 2_000
    assert sample.equals(found.sample())  # the same every time


@every
def test_absent_data_is_named_with_its_licence(name, tmp_path):
    with pytest.raises(DataMissingError) as caught:
        dataset(name).load(tmp_path, BadRows())
    assert str(tmp_path) in caught.value.where
    found = dataset(name)
    assert found.LICENCE in str(caught.value) or name.startswith("simulated")
    advice = f"fullrank data get {name}" if found.FILES else found.HOME
    assert advice in caught.value.fix
    assert found.FILES or "data get" not in caught.value.fix


@every
def test_the_law_of_time_would_notice(name, splits):
    """The negative control: with train and test exchanged, the law of time must fail."""
    time = dataset(name).SPEC.time
    if time and pl.concat(splits.values())[time].n_unique() > 1:
        assert splits["test"][time].max() > splits["valid"][time].min()
