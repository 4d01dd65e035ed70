"""Any CSV, Parquet or Arrow file or folder with a Spec, as a dataset."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from fullrank.data.home import RemoteFile
from fullrank.data.spec import History, Number, Spec, Tags, Target, Vector
from fullrank.data.split import PARTS, Splits, at_random, by_time, in_order
from fullrank.data.text import BadRow, BadRows, Dialect, Kind, read_delimited
from fullrank.data.text.bad_rows import bad_value, find_bad
from fullrank.data.text.delimited import column_names
from fullrank.errors import DataFormatError, DataMissingError, SchemaError, SplitError, nearest

Split = Literal["time", "random", "order"]
COLUMNAR = (".parquet", ".pq", ".arrow", ".ipc", ".feather")
_PARTS = r"[^\s,;|\[\]()]+"  # the values of a list that is written as text


@dataclass(frozen=True, kw_only=True)
class TabularDataset:
    """A user's own files; the names are those of a dataset module.

    Args:
        NAME: for messages and run folders.
        SPEC: what the columns mean.
        paths: "" -> one log that is to be split, or "train", "valid", "test" -> its own log.
        split: how one log is split.
        fractions: of the splits.
        seed: of a random split.
        dialect: of text files; guessed for each file where None.
    """

    NAME: str
    SPEC: Spec
    paths: Mapping[str, Path]
    split: Split
    fractions: Mapping[str, float]
    seed: int
    dialect: Dialect | None
    TITLE: str = "your own files"
    LICENCE: str = "yours"
    HOME: str = ""
    NOTE: str = ""
    FILES: tuple[RemoteFile, ...] = ()

    @property
    def FOLDERS(self) -> tuple[str, ...]:  # noqa: N802  the name of a dataset module's constant
        """The user's files; an absolute path stays what it is below any root."""
        return tuple(str(p.resolve() if p.exists() else p) for p in self.paths.values())

    def load(self, root: Path, bad_rows: BadRows) -> Splits:
        """Reads and splits; relative paths are looked up in `root` where they are not found."""
        logs = {
            name: read_files(
                path if path.exists() else root / path, self.SPEC, bad_rows, self.dialect
            )
            for name, path in self.paths.items()
        }
        if "" not in logs:
            return logs
        rows = logs[""]
        if self.split == "time":
            return by_time(rows, self.SPEC.time, fractions=self.fractions)
        if self.split == "random":
            return at_random(rows, fractions=self.fractions, seed=self.seed)
        return in_order(rows, fractions=self.fractions)

    def sample(self) -> pl.DataFrame:
        """Returns the first 200 rows of train."""
        return self.load(Path(), BadRows())["train"].head(200).collect()


def from_files(
    path: Path | Mapping[str, Path],
    spec: Spec,
    *,
    split: Split | None = None,
    fractions: Mapping[str, float] = PARTS,
    seed: int = 0,
    dialect: Dialect | None = None,
) -> TabularDataset:
    """Makes a dataset of any CSV, Parquet or Arrow file or folder.

    Args:
        path: one log, which is then split, or "train", "valid", "test" -> a log each.
        spec: what the columns mean.
        split: "time", "random" or "order" (of the file); by time where the spec names a time.
        fractions: name -> share of the rows.
        seed: of a random split.
        dialect: of text files; guessed where None.

    Raises:
        SplitError: a split by time of a log without one.

    Example:
        >>> spec = Spec(columns=(Target(name="click"),))
        >>> from_files(Path("log.csv"), spec).split
        'random'
    """
    if split == "time" and not spec.time:
        raise SplitError(
            "a split by time needs a time",
            where="Spec.time",
            found="''",
            expected="the column with unix seconds",
            fix="name it in the spec, or split at random",
        )
    paths = {"": path} if isinstance(path, Path) else dict(path)
    return TabularDataset(
        NAME=next(iter(paths.values())).stem,
        SPEC=spec,
        paths=paths,
        split=split or ("time" if spec.time else "random"),
        fractions=fractions,
        seed=seed,
        dialect=dialect,
    )


def read_files(
    path: Path,
    spec: Spec,
    bad_rows: BadRows,
    dialect: Dialect | None = None,
    *,
    labels: bool = True,
    extra: bool = False,
) -> pl.LazyFrame:
    """Reads a file, or all files of a folder in the order of their names, by a spec.

    Args:
        path: file or folder.
        spec: what the columns mean.
        bad_rows: what happens to rows that cannot be read.
        dialect: of text files; guessed for each file where None.
        labels: whether labels must be there and right; rows to be scored may have none.
        extra: whether columns that the spec does not know are let through.

    Raises:
        DataMissingError: nothing is there.
        SchemaError: a column is missing, or is there and unknown to the spec.
        DataFormatError, LabelError: as for `read_delimited` and `read_columnar`.
    """
    files = data_files(path)
    if files[0].suffix in COLUMNAR:
        parts = [
            read_columnar(f, _kinds(spec, _columnar_names(f), labels), bad_rows) for f in files
        ]
        for file, part in zip(files, parts, strict=True):
            _require_known(list(part.collect_schema()), spec, file, labels, extra)
        return pl.concat(parts, how="vertical_relaxed")
    parts = []
    for file in files:
        how = dialect or _sniffed(file, spec)
        names = column_names(file, how)
        _require_known(names, spec, file, labels, extra)
        rows = read_delimited(file, _kinds(spec, names, labels), bad_rows, dialect=how)
        parts.append(rows.with_columns(_lists(spec, names)))
    return pl.concat(parts)


def data_files(path: Path) -> list[Path]:
    """Returns the file, or the files of a folder that are not hidden, sorted by name.

    Raises:
        DataMissingError: there is no such path, or the folder is empty.
    """
    files = [path] if path.is_file() else []
    if path.is_dir():
        files = sorted(f for f in path.iterdir() if f.is_file() and f.name[0] not in "._")
    if not files:
        raise DataMissingError(
            "there is no data here",
            where=str(path),
            found="an empty folder" if path.is_dir() else "nothing",
            expected="a CSV, Parquet or Arrow file, or a folder of them",
            fix="check the path",
        )
    return files


def read_columnar(path: Path, kinds: Mapping[str, Kind], bad_rows: BadRows) -> pl.LazyFrame:
    """Reads a Parquet or Arrow file lazily.

    Args:
        path: the file.
        kinds: columns whose values are checked ("float": finite; "label": 0 or 1).
        bad_rows: what happens to rows that fail; line numbers are row numbers from 1.

    Raises:
        DataMissingError: there is no such file.
        DataFormatError: it is empty, truncated or of another format, or a row is bad.
        LabelError: a label is outside {0, 1}.
    """
    names = _columnar_names(path)  # opens the file, so that a broken one is refused here
    rows = pl.scan_parquet(path) if _is_parquet(path) else _scan_arrow(path)
    floats = {n for n, t in rows.collect_schema().items() if t.is_float()}
    checked = {n: k for n, k in kinds.items() if n in names and (k != "float" or n in floats)}
    flags = [bad_value(n, k).alias(n) for n, k in checked.items() if k != "text"]
    if (
        not flags
        or not rows.select(pl.any_horizontal(flags).any()).collect(engine="streaming").item()
    ):
        return rows
    row = "row number in the file"
    bad = rows.with_row_index(row).filter(pl.any_horizontal(flags)).collect(engine="streaming")
    found = find_bad(bad, checked)
    bad_rows.take(
        [
            BadRow(
                str(path),
                bad[row][i] + 1,
                why.reason,
                str(bad.drop(row).row(i, named=True)),
                why.expected,
                why.label,
            )
            for i, why in sorted(found.items())
        ]
    )
    return rows.filter(~pl.any_horizontal(flags))


def _columnar_names(path: Path) -> list[str]:
    if not path.exists() or path.stat().st_size == 0:
        raise (DataFormatError if path.exists() else DataMissingError)(
            "a file is empty" if path.exists() else "a file is missing",
            where=str(path),
            found="0 bytes" if path.exists() else "nothing",
            expected="a Parquet or Arrow file",
            fix="check the path, or get the file again",
        )
    with _refusing_broken(path):
        if _is_parquet(path):
            return list(pq.ParquetFile(path).schema_arrow.names)
        with pa.memory_map(str(path)) as source:
            return list(_arrow_reader(source, path).schema.names)


@contextmanager
def _refusing_broken(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowInvalid, OSError) as error:
        raise DataFormatError(
            "a columnar file is truncated or of another format",
            where=str(path),
            found=str(error).splitlines()[0][:300],
            expected="a complete Parquet or Arrow file",
            fix="get or write the file again",
        ) from error


def _is_parquet(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PAR1" or path.suffix in (".parquet", ".pq")


def _arrow_reader(source: Any, path: Path) -> Any:
    with path.open("rb") as file:
        is_file = file.read(6) == b"ARROW1"
    return pa.ipc.open_file(source) if is_file else pa.ipc.open_stream(source)


def _scan_arrow(path: Path) -> pl.LazyFrame:
    with path.open("rb") as file:
        if file.read(6) == b"ARROW1":
            return pl.scan_ipc(path)
    # The stream format cannot be read lazily.
    with _refusing_broken(path), pa.memory_map(str(path)) as source:
        return pl.DataFrame(pa.ipc.open_stream(source).read_all()).lazy()


def _require_known(names: list[str], spec: Spec, path: Path, labels: bool, extra: bool) -> None:
    needed = [n for n, optional in spec.raw_columns(labels=labels).items() if not optional]
    absent = [n for n in needed if n not in names]
    unknown = [n for n in names if n not in spec.accounted() and not extra]
    if absent or unknown:
        raise SchemaError(
            "a file lacks a column" if absent else "a file has columns that the spec does not know",
            where=str(path),
            found=", ".join(names if absent else unknown)[:300],
            expected=", ".join(absent or sorted(spec.accounted()))[:300],
            fix=nearest(absent[0], names)
            if absent
            else "add them to the spec, or to Spec.ignore with a reason",
        )


def _kinds(spec: Spec, names: list[str], labels: bool) -> dict[str, Kind]:
    """Returns how each column of a file is read; what is not named is text."""
    kinds: dict[str, Kind] = {}
    for column in spec.columns:
        if isinstance(column, Number):
            kinds[column.name] = "float"
        elif isinstance(column, Target) and labels:
            kinds[column.name] = "late_label" if column.observed else "label"
            if column.observed:
                kinds[column.observed] = "text"
    if spec.time:
        kinds[spec.time] = "int"
    if spec.weight:
        kinds[spec.weight] = "float"
    return {name: kind for name, kind in kinds.items() if name in names}


def _lists(spec: Spec, names: list[str]) -> list[pl.Expr]:
    """Returns expressions that turn text into the lists and booleans that the spec means."""
    made: list[pl.Expr] = []
    for column in spec.columns:
        if isinstance(column, History):
            for event in column.events:
                parts = pl.col(event.column).fill_null("").str.extract_all(_PARTS)
                kind = pl.String if event.table else pl.Int64
                made.append(parts.list.eval(pl.element().str.strip_chars("'\"").cast(kind)))
        elif isinstance(column, Vector):
            parts = pl.col(column.name).str.extract_all(_PARTS)
            made.append(parts.list.eval(pl.element().cast(pl.Float32)))
        elif isinstance(column, Target) and column.observed:
            made.append(pl.col(column.observed).str.to_lowercase().is_in(["true", "1", "t", "yes"]))
        elif isinstance(column, Tags):
            made.append(pl.col(column.name))  # the featurizer splits tags by their separator
    return [e for e in made if e.meta.output_name() in names]


def _sniffed(path: Path, spec: Spec) -> Dialect:
    from fullrank.data.inspect import sniff

    guess = sniff(path)
    named = replace(guess, header=True)
    # A header without rows looks like a row; the spec knows better.
    return named if {*column_names(path, named)} & spec.accounted() else guess
