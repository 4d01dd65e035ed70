"""Records: the contract, the refusal to compare unlike ones, and files."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

from fullrank.diagnose import records as module
from fullrank.diagnose.records import Findings, Record, difference, read_records
from fullrank.errors import DataFormatError, DiskFullError, IncomparableError

BASE = Record(
    run_id="r", variant="a", seed=0, epoch=1.0, hook="embed", matrix_kind="batch_flat:embed",
    metric="erank", value=3.5, n=100, d=8, bound=8.0, centred=True, row_norm="none",
    row_filter="all", accumulator="A3", dtype="float64", floor=1e-10, split="valid",
    subset_hash="abc",
)  # fmt: skip


def test_a_record_has_every_field_of_the_contract() -> None:
    contract = (
        *("run_id", "variant", "seed", "epoch", "hook", "matrix_kind", "metric", "value", "n"),
        *("d", "bound", "centred", "row_norm", "row_filter", "accumulator", "dtype", "floor"),
        *("split", "subset_hash"),
    )
    assert [f.name for f in fields(Record)][: len(contract)] == list(contract)


def test_like_records_are_subtracted() -> None:
    other = replace(BASE, variant="b", epoch=2.0, seed=1, value=3.0, bound=7.0)
    assert difference(BASE, other) == 0.5


UNLIKE = {
    "matrix_kind": "head_in", "metric": "ia", "centred": False, "n": 99, "d": 9,
    "row_norm": "l2", "row_filter": "seen",
}  # fmt: skip


@pytest.mark.parametrize("key", UNLIKE)
def test_unlike_records_are_refused_and_the_key_is_named(key: str) -> None:
    with pytest.raises(IncomparableError, match=f"differ in {key}") as caught:
        difference(BASE, replace(BASE, **{key: UNLIKE[key]}))
    assert repr(UNLIKE[key]) in caught.value.found


def test_all_differing_keys_are_named_at_once_and_a_missing_value_is_refused() -> None:
    with pytest.raises(IncomparableError, match="metric, n"):
        difference(BASE, replace(BASE, metric="ia", n=1))
    with pytest.raises(IncomparableError, match="value"):
        difference(BASE, replace(BASE, value=None))


def test_findings_survive_a_round_trip(tmp_path: Path) -> None:
    found = Findings()
    found.add(BASE)
    spectrum = replace(BASE, metric="log_spectrum", value=None)
    spectrum = replace(spectrum, array=spectrum.key())
    found.add(spectrum, torch.arange(8).double())
    found.labels[spectrum.array] = ["a", "naïve"]
    found.save(tmp_path / "diagnostics")
    again = Findings.load(tmp_path / "diagnostics")
    assert again.records == found.records
    assert again.labels == found.labels
    stored = again.array(metric="log_spectrum")
    assert stored is not None
    assert stored.dtype == torch.float32
    assert stored.tolist() == list(range(8))
    assert again.value(metric="erank", centred=True) == 3.5
    assert again.value(metric="erank", centred=False) is None
    assert not list(tmp_path.glob("**/.*"))


def test_nan_is_written_as_null(tmp_path: Path) -> None:
    module.append_records(tmp_path / "records.jsonl", [replace(BASE, value=float("nan"))])
    line = (tmp_path / "records.jsonl").read_text()
    assert json.loads(line)["value"] is None
    assert read_records(tmp_path / "records.jsonl")[0].value is None


@pytest.mark.parametrize("damage", ["{", "[]", '{"run_id": "r"}', "\x00"])
def test_a_damaged_line_is_named(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "records.jsonl"
    module.append_records(path, [BASE])
    with path.open("a") as file:
        file.write(damage + "\n")
    with pytest.raises(DataFormatError) as caught:
        read_records(path)
    assert "line 2" in caught.value.where


def test_a_missing_file_or_array_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataFormatError):
        Findings.load(tmp_path)
    module.append_records(tmp_path / "records.jsonl", [replace(BASE, array="gone")])
    with pytest.raises(DataFormatError, match="cannot be read") as caught:
        Findings.load(tmp_path)
    assert "gone" in caught.value.found


def test_a_full_disk_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = Findings([BASE])
    found.save(tmp_path)
    before = (tmp_path / "records.jsonl").read_bytes()

    def full(self: Path, *_: object, **__: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(DiskFullError):
        Findings([replace(BASE, value=9.0)]).save(tmp_path)
    assert (tmp_path / "records.jsonl").read_bytes() == before
    assert not list(tmp_path.glob(".*"))


def test_wide_spectra_keep_256_log_spaced_indices_with_both_ends() -> None:
    assert module.kept_indices(1024).tolist() == list(range(1024))
    kept = module.kept_indices(5000)
    assert (len(kept), int(kept[0]), int(kept[-1])) == (256, 0, 4999)
    assert bool((kept.diff() >= 0).all())


def test_the_latest_pass_is_the_newest_with_arrays() -> None:
    found = Findings()
    for epoch in (1.0, 2.0):
        found.add(replace(BASE, epoch=epoch, array=f"a{epoch}"), torch.zeros(1))
    found.add(replace(BASE, epoch=3.0, matrix_kind="monitor:embed"))
    assert {r.epoch for r in found.latest().records} == {2.0}
    assert found.epochs() == [1.0, 2.0, 3.0]
