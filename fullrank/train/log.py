"""Where the numbers of a run go: metrics.jsonl, and TensorBoard or MLflow where asked for."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any

from fullrank.config import require, to_dict
from fullrank.disk import write_text, written_whole
from fullrank.errors import ExtraMissingError
from fullrank.train.config import TrainConfig


class MetricsLog(AbstractContextManager["MetricsLog"]):
    """Appends one JSON object per call to `metrics.jsonl`.

    A resumed run first drops the lines after the step that it resumes at, and a line that was
    cut off, so that no step occurs twice.

    Args:
        folder: of the run; None keeps nothing.
        config: says whether TensorBoard and MLflow get the numbers as well.
        step: the step at which the run starts or resumes.

    Raises:
        ExtraMissingError: TensorBoard or MLflow is asked for and not installed.
        ConfigError: one of them is asked for without a folder.
    """

    def __init__(self, folder: Path | None, config: TrainConfig, step: int) -> None:
        self._file = self._board = self._mlflow = None
        for name in ("tensorboard", "mlflow"):
            require(
                folder is not None or not getattr(config, name),
                where=f"TrainConfig.{name}",
                found="true, and a run without a folder",
                expected="a run folder to write into",
                fix="pass a folder, or turn it off",
            )
        if folder is None:
            return
        board = _wanted("torch.utils.tensorboard", "track") if config.tensorboard else None
        self._mlflow = _wanted("mlflow", "mlflow") if config.mlflow else None
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "metrics.jsonl"
        _drop_after(path, step)
        self._file = path.open("a", encoding="utf-8")
        if board is not None:
            self._board = board.SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
        if self._mlflow is not None:
            _start_mlflow(self._mlflow, folder, config)

    def write(self, kind: str, step: int, epoch: int, values: Mapping[str, float]) -> None:
        """Writes one line: kind, step, epoch (from 0) and the values.

        Args:
            kind: "train", "valid" or "monitor".
            step: optimiser steps taken.
            epoch: the running one.
            values: names and numbers.
        """
        if self._file is not None:
            line = {"kind": kind, "step": step, "epoch": epoch, **values}
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
        named = {f"{kind}/{name}": value for name, value in values.items()}
        if self._board is not None:
            for name, value in named.items():
                self._board.add_scalar(name, value, step)
        if self._mlflow is not None:
            self._mlflow.log_metrics(named, step=step)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes the file, the board and the MLflow run."""
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.close()
        if self._mlflow is not None:
            self._mlflow.end_run("FINISHED" if error is None else "FAILED")


def _drop_after(path: Path, step: int) -> None:
    if not path.exists():
        return
    with (
        written_whole(path) as draft,
        path.open(encoding="utf-8") as old,
        draft.open("w", encoding="utf-8") as new,
    ):
        for line in old:
            try:
                at = json.loads(line)["step"]
            except ValueError:  # the line being written when the process was killed
                continue
            if at <= step:
                new.write(line)


def _start_mlflow(mlflow: Any, folder: Path, config: TrainConfig) -> None:
    """Opens a run, or goes on with the one that an earlier process opened."""
    note = folder / "mlflow.json"
    if note.exists():
        mlflow.start_run(run_id=json.loads(note.read_text(encoding="utf-8"))["run_id"])
        return
    run = mlflow.start_run(run_name=folder.name)
    write_text(note, json.dumps({"run_id": run.info.run_id}))
    mlflow.log_params(to_dict(config))


def _wanted(module: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as cause:
        raise ExtraMissingError(
            "an optional library is not installed",
            where=f"TrainConfig.{'mlflow' if extra == 'mlflow' else 'tensorboard'}",
            found=str(cause),
            expected=f"the extra '{extra}'",
            fix=f"pip install 'fullrank[{extra}]', or turn it off",
        ) from cause
