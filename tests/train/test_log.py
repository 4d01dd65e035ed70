from __future__ import annotations

import builtins
import importlib
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from fullrank.errors import ConfigError, ExtraMissingError
from fullrank.train.config import TrainConfig
from fullrank.train.log import MetricsLog

PLAIN = TrainConfig()


def read(folder: Path) -> list[dict[str, object]]:
    return [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]


def test_lines_are_complete_at_once(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, PLAIN, 0) as log:
        log.write("train", 3, 0, {"loss": 0.5})
        assert read(tmp_path) == [{"kind": "train", "step": 3, "epoch": 0, "loss": 0.5}]


def test_resuming_drops_later_lines_and_a_torn_one(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, PLAIN, 0) as log:
        for step in (1, 2, 3, 4):
            log.write("train", step, 0, {"loss": float(step)})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')
    with MetricsLog(tmp_path, PLAIN, 2) as log:
        log.write("train", 3, 0, {"loss": 33.0})
    assert [(x["step"], x["loss"]) for x in read(tmp_path)] == [(1, 1.0), (2, 2.0), (3, 33.0)]


def test_without_a_folder_nothing_is_written(tmp_path: Path) -> None:
    with MetricsLog(None, PLAIN, 0) as log:
        log.write("train", 1, 0, {"loss": 0.5})


@pytest.mark.parametrize("name", ["tensorboard", "mlflow"])
def test_a_tracker_needs_a_folder(name: str) -> None:
    with pytest.raises(ConfigError) as error:
        MetricsLog(None, TrainConfig(**{name: True}), 0)  # type: ignore[arg-type]
    assert name in error.value.where


@pytest.mark.parametrize(
    ("name", "module", "extra"),
    [("tensorboard", "torch.utils.tensorboard", "track"), ("mlflow", "mlflow", "mlflow")],
)
def test_a_tracker_that_is_not_installed_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, module: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ExtraMissingError) as error:
        MetricsLog(tmp_path / "run", TrainConfig(**{name: True}), 0)  # type: ignore[arg-type]
    assert f"fullrank[{extra}]" in error.value.fix
    assert name in error.value.where
    assert not (tmp_path / "run").exists()


class FakeRun:
    """Stands in for the mlflow module; records what is called."""

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []

    def start_run(self, run_id: str | None = None, run_name: str | None = None) -> object:
        self.calls.append(("start", run_id, run_name))
        return SimpleNamespace(info=SimpleNamespace(run_id=run_id or "id-1"))

    def log_params(self, params: dict[str, object]) -> None:
        self.calls.append(("params", params["learning_rate"]))

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self.calls.append(("metrics", metrics, step))

    def end_run(self, status: str) -> None:
        self.calls.append(("end", status))


def test_mlflow_gets_settings_numbers_and_the_same_run_on_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake, config = FakeRun(), TrainConfig(mlflow=True, learning_rate=0.25)
    monkeypatch.setitem(sys.modules, "mlflow", fake)  # type: ignore[arg-type]
    with MetricsLog(tmp_path, config, 0) as log:
        log.write("valid", 7, 1, {"auc": 0.75})
    with pytest.raises(RuntimeError), MetricsLog(tmp_path, config, 7):
        raise RuntimeError
    assert fake.calls == [
        ("start", None, tmp_path.name),
        ("params", 0.25),
        ("metrics", {"valid/auc": 0.75}, 7),
        ("end", "FINISHED"),
        ("start", "id-1", None),
        ("end", "FAILED"),
    ]


def test_tensorboard_gets_the_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[tuple[object, ...]] = []

    class Writer:
        def __init__(self, folder: str, purge_step: int) -> None:
            written.append((Path(folder).name, purge_step))

        def add_scalar(self, name: str, value: float, step: int) -> None:
            written.append((name, value, step))

        def close(self) -> None:
            written.append(("closed",))

    board = ModuleType("torch.utils.tensorboard")
    board.SummaryWriter = Writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", board)
    with MetricsLog(tmp_path, TrainConfig(tensorboard=True), 4) as log:
        log.write("train", 5, 0, {"loss": 0.5})
    assert written == [("tensorboard", 5), ("train/loss", 0.5, 5), ("closed",)]


def test_trackers_are_not_imported_unless_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def refusing(name: str, *rest: object) -> object:
        assert "mlflow" not in name
        assert "tensorboard" not in name
        return real(name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", refusing)
    monkeypatch.setattr(importlib, "import_module", refusing)
    with MetricsLog(tmp_path, PLAIN, 0):
        pass
