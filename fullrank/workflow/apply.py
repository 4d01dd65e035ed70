"""Using trained artefacts: evaluate, export and predict."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq

from fullrank.batch import Batch
from fullrank.config import require
from fullrank.data.datasets.tabular import read_files
from fullrank.data.prepare import Prepared
from fullrank.data.stream import count_rows, stream_rows
from fullrank.data.text import BadRows
from fullrank.disk import written_whole
from fullrank.errors import ArtifactError, ConfigError, EmptyInputError
from fullrank.evaluate.popularity import popularity_line
from fullrank.serve.artifact import Artifact
from fullrank.serve.forms import FILES, Form, program_bytes
from fullrank.serve.predictor import Predictor
from fullrank.workflow.calibration import Calibrate, effect_lines, effects, uncorrected
from fullrank.workflow.console import console, preparing, table
from fullrank.workflow.data import DataOptions, refusing_broken
from fullrank.workflow.folder import RunFolder
from fullrank.workflow.popularity import popularity_alone
from fullrank.workflow.run import fitted, intervals, measure

_CHUNK_ROWS = 65536
_SHOWN_ROWS = 10
_AS_IT_IS = Calibrate()
_WRITERS: dict[str, Callable[[Path, pa.Schema], Any]] = {
    ".parquet": pq.ParquetWriter,
    ".pq": pq.ParquetWriter,
    ".csv": pc.CSVWriter,
}


def artifact_folder(folder: Path) -> Path:
    """Returns the artefact of a run folder, or the folder itself where it is an artefact."""
    inside = folder / "artifact"
    return inside if inside.is_dir() else folder


def evaluate_command(folder: Path, file: Path | None, options: DataOptions) -> dict[str, Any]:
    """Measures what an artefact serves, on the test split of its run or on a file with labels.

    The correction for thinned-out negatives is left out on the test split, which is thinned out
    too, and made on a file.
    """
    predictor = Predictor.load(artifact_folder(folder))
    schema = predictor.artifact.schema
    curves = predictor.artifact.calibration
    alone: dict[str, float] = {}
    if file is None:
        prepared = Prepared.open(RunFolder(folder).prepared())
        _require_same(predictor.artifact, prepared)
        batches: Iterator[Batch] = prepared.splits["test"].batches()
        curves = uncorrected(curves)  # its negatives are thinned out as those of the fit were
        alone = popularity_alone(prepared).get("test", {})
    else:
        batches = _encoded(predictor, _read(predictor.artifact, file, options))
    with refusing_broken(file or folder):
        values, scores = measure(predictor.model, batches, schema, curves)
    interval = intervals(scores)
    rows = [[name, value, *interval.get(name, [None, None])] for name, value in values.items()]
    table(f"{folder} on {file or 'its test split'}", ["metric", "value", "low", "high"], rows)
    if alone:
        console.print(popularity_line(alone), markup=False)
    return {"metrics": values, "interval": interval, "popularity": alone, "rows": len(scores)}


def export_command(
    source: Path,
    out: Path,
    form: Literal["artifact", "torch-export", "onnx"],
    how: Calibrate = _AS_IT_IS,
) -> dict[str, Any]:
    """Writes an artefact, with its model as a program for other engines if asked for.

    Args:
        source: a run folder or an artefact folder.
        out: an artefact folder; or a file that ends with .pt2 or .onnx, for the program alone.
        form: of the program, or "artifact" for none.
        how: calibration to fit; without any, the artefact keeps what it has.

    Raises:
        ArtifactError: the source was changed, or exported scores differ from eager ones.
        RunFolderError: calibration is asked for, and the source is no run with its data.
    """
    artifact = Artifact.load(artifact_folder(source))
    if how != _AS_IT_IS:
        artifact = _calibrated(artifact, source, how)
    if form == "artifact":
        artifact.save(out)
    else:
        _export_program(artifact, out, form)
    console.print(f"wrote {out}", markup=False)
    return {"out": str(out), "format": form, "model": artifact.model}


def predict_command(
    folder: Path, file: Path, out: Path | None, options: DataOptions
) -> dict[str, Any]:
    """Scores a file in a stream; ten rows are shown when there is no output file.

    Raises:
        ConfigError: the ending of the output file is not known.
        EmptyInputError: the file has no rows; nothing is written.
    """
    require(
        out is None or out.suffix in _WRITERS,
        where="--out",
        found=str(out),
        expected="a file that ends with one of: " + ", ".join(_WRITERS),
        fix="give it such an ending",
    )
    predictor = Predictor.load(artifact_folder(folder))
    rows = stream_rows(file, predictor.artifact.featurizer.spec, _bad_rows(options), _CHUNK_ROWS)
    began = time.perf_counter()
    if out is None:
        with refusing_broken(file):
            first = next((chunk for chunk in rows if len(chunk)), pl.DataFrame())
        _require_rows(len(first), file)
        shown = predictor.score(first.head(_SHOWN_ROWS))
        count = len(next(iter(shown.values())))
        cells = [[i, *(float(p[i]) for p in shown.values())] for i in range(count)]
        table(f"{file.name}: probabilities of the first rows", ["row", *shown], cells)
        return {"rows": count, "scores": _plain(shown)}
    total = _write_scores(predictor, rows, file, out)
    seconds = time.perf_counter() - began
    console.print(f"wrote {total:,} rows to {out} ({total / seconds:,.0f} rows/s)", markup=False)
    rate = round(total / seconds)
    return {"rows": total, "out": str(out), "seconds": round(seconds, 3), "rows_per_second": rate}


def _write_scores(predictor: Predictor, rows: Iterator[pl.DataFrame], file: Path, out: Path) -> int:
    total, expected = 0, count_rows(file)
    # The writer closes, and so completes the file, before the draft gets its name.
    with refusing_broken(file), written_whole(out) as draft, ExitStack() as closing:
        writer: Any = None
        advance = closing.enter_context(preparing("scoring"))
        for chunk in rows:
            scores = predictor.score(chunk)
            named = {f"probability_{label}": values for label, values in scores.items()}
            part = chunk.with_columns(**{n: pl.Series(v) for n, v in named.items()})
            if out.suffix == ".csv":
                part = _lists_as_text(part)
            rows_out = part.to_arrow()
            if writer is None:
                writer = closing.enter_context(_writer(draft, rows_out.schema, out))
            writer.write_table(rows_out)
            total += len(chunk)
            advance(file.name, total, expected)
        _require_rows(total, file)
    return total


def _writer(draft: Path, schema: pa.Schema, out: Path) -> Any:
    try:
        return _WRITERS[out.suffix](draft, schema)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as cause:
        raise ConfigError(
            "the rows cannot be written in this format",
            where=f"--out {out}",
            found=str(cause).splitlines()[0][:200],
            expected="columns that the format can hold",
            fix="write .parquet",
        ) from cause


def _lists_as_text(rows: pl.DataFrame) -> pl.DataFrame:
    """Returns rows with lists as text, a|b|c, as the reader of text files takes them apart."""
    nested = [n for n, kind in rows.schema.items() if isinstance(kind, pl.List | pl.Array)]
    lists = pl.col(nested).cast(pl.List(pl.String))
    return rows.with_columns(lists.list.join("|"))


def _require_rows(count: int, file: Path) -> None:
    if count == 0:
        raise EmptyInputError(
            "there is nothing to score",
            where=str(file),
            found="0 rows",
            expected="at least one row",
            fix="check the file",
        )


def _read(artifact: Artifact, file: Path, options: DataOptions) -> pl.LazyFrame:
    return read_files(file, artifact.featurizer.spec, _bad_rows(options), extra=True)


def _bad_rows(options: DataOptions) -> BadRows:
    return BadRows(
        options.bad_rows, options.quarantine if options.bad_rows == "quarantine" else None
    )


def _encoded(predictor: Predictor, rows: pl.LazyFrame) -> Iterator[Batch]:
    for chunk in rows.collect_batches(chunk_size=_CHUNK_ROWS, maintain_order=True):
        if len(chunk):
            yield predictor.artifact.featurizer(chunk)


def _require_same(artifact: Artifact, prepared: Prepared) -> None:
    mine, other = artifact.featurizer.fingerprint(), prepared.featurizer.fingerprint()
    if mine != other:
        raise ArtifactError(
            "the artefact and the prepared data were made by different featurizers",
            where=str(prepared.folder),
            found=f"featurizer {other}",
            expected=f"featurizer {mine}",
            fix="train again on the new data, or measure a file of raw rows with --file",
        )


def _calibrated(artifact: Artifact, source: Path, how: Calibrate) -> Artifact:
    """Returns the artefact with calibration fitted on the validation split of its run."""
    prepared = Prepared.open(RunFolder(source).prepared())
    _require_same(artifact, prepared)
    how.require_unweighted(artifact.featurizer)
    model = artifact.build()
    found = fitted(model, prepared, how)
    _, scores = measure(model, prepared.splits["test"].batches(), artifact.schema)
    test = prepared.splits["test"].batches()
    metrics, _ = measure(model, test, artifact.schema, uncorrected(found.curves))
    lines = effect_lines(effects(scores, found))
    for line in lines or ["calibration: the validation rows show nothing to heal"]:
        console.print(line, markup=False)
    return replace(artifact, calibration=found.curves, metrics=metrics)


def _export_program(artifact: Artifact, out: Path, form: Form) -> None:
    """Writes a program alone where OUT has its ending, else an artefact with the program in it."""
    name = FILES[form]
    content = program_bytes(artifact.build(), artifact.schema, form)
    if out.suffix == Path(name).suffix:
        with written_whole(out) as draft:
            draft.write_bytes(content)
        return
    with TemporaryDirectory() as place:
        program = Path(place) / name
        program.write_bytes(content)
        replace(artifact, exported={**artifact.exported, name: program}).save(out)


def _plain(scores: dict[str, np.ndarray]) -> dict[str, list[float]]:
    return {label: [float(v) for v in values] for label, values in scores.items()}
