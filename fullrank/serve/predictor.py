"""Predictor: one artefact on one device; raw rows in, probabilities out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import torch
from torch import Tensor

from fullrank.batch import Batch
from fullrank.errors import DataFormatError
from fullrank.evaluate.calibrate import Calibrator
from fullrank.ops.blocks import score_in_blocks
from fullrank.serve.artifact import Artifact


class Predictor:
    """Scores raw rows with the featurizer and the weights of one artefact.

    A row's score does not depend on the rows beside it: rows run in blocks of a fixed size, so
    that a served score and an offline score are equal to the bit.

    Args:
        artifact: loaded and checked.
        device: where the model runs.
    """

    def __init__(self, artifact: Artifact, device: str = "cpu") -> None:
        self.artifact = artifact
        self.device = torch.device(device)
        self.model = artifact.build().to(self.device)

    @classmethod
    def load(cls, folder: Path | str, device: str = "cpu") -> Predictor:
        """Loads an artefact folder."""
        return cls(Artifact.load(Path(folder)), device)

    def logits(self, batch: Batch) -> dict[str, np.ndarray]:
        """Returns label -> logits [B] float32 for rows that are encoded already."""
        if len(batch) == 0:
            return {name: np.empty(0, dtype=np.float32) for name in batch.labels.names}
        with torch.inference_mode():
            scores = score_in_blocks(self._score, batch.without_labels().to(self.device))
        return {label: logit.cpu().numpy() for label, logit in scores.items()}

    def _score(self, batch: Batch) -> dict[str, Tensor]:
        scores: dict[str, Tensor] = self.model.score(batch)  # type: ignore[operator]
        return scores

    def score(self, rows: pa.Table | pl.DataFrame) -> dict[str, np.ndarray]:
        """Returns label -> probabilities [B] float32 in [0, 1], calibrated if the artefact is.

        Unseen values read the unknown row, missing optional columns read as unknown, extra
        columns and labels, if there are any, are ignored.

        Raises:
            SchemaError: a column that is not optional is missing.
            DataFormatError: a number is NaN or infinite, or a column has another type than the
                spec says.
        """
        return calibrated(self.logits(self.encode(rows)), self.artifact.calibration)

    def encode(self, rows: pa.Table | pl.DataFrame) -> Batch:
        """Encodes raw rows without their labels; see `score` for what is refused."""
        frame = pl.from_arrow(rows) if isinstance(rows, pa.Table) else rows
        assert isinstance(frame, pl.DataFrame)
        labels = [t.name for t in self.artifact.featurizer.spec.targets()]
        served = frame.drop(labels, strict=False)
        try:
            return self.artifact.featurizer(served)
        except pl.exceptions.PolarsError as cause:
            raise DataFormatError(
                "raw rows cannot be encoded",
                where=", ".join(f"{n}: {t}" for n, t in served.schema.items())[:300],
                found=str(cause).splitlines()[0][:300],
                expected="columns of the types that the spec says",
                fix="convert the column before it is scored",
            ) from cause

    def score_batches(
        self, rows: pl.LazyFrame, chunk_rows: int = 65536
    ) -> Iterator[tuple[pl.DataFrame, dict[str, np.ndarray]]]:
        """Yields chunks of raw rows with their probabilities, for inputs of any length."""
        for chunk in rows.collect_batches(chunk_size=chunk_rows, maintain_order=True):
            if len(chunk):
                yield chunk, self.score(chunk)


def calibrated(
    logits: Mapping[str, np.ndarray], calibration: Mapping[str, Calibrator]
) -> dict[str, np.ndarray]:
    """Returns label -> probabilities [B] float32 of logits, the way an artefact serves them."""
    return {
        label: probabilities(calibration[label].logits(x) if label in calibration else x)
        for label, x in logits.items()
    }


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Returns 1 / (1 + exp(-x)) for every logit, float32, the same bits at any place in an array.

    trap: torch.sigmoid in float32 gives the last elements of an array, which do not fill a vector
    register, other last bits than the ones before them. Hence float64, then one rounding.
    """
    with np.errstate(over="ignore"):  # exp(-x) of a very low logit: 1 / (1 + inf) is right
        wide = 1.0 / (1.0 + np.exp(-logits.astype(np.float64)))
    return wide.astype(np.float32)
