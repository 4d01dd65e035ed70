"""A simulator of ad logs: the same seed writes the same bytes.

The folder that `simulate` writes:

    log.parquet    one row per impression, in order of time
    ads.parquet    one row per ad: title, keywords, vector
    world.json     the dials, and where the splits begin
    truth.json     the best possible AUC and log-loss of each split
    truth.parquet  the true probability of each row; no loader reads it
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from fullrank.config import from_dict, require
from fullrank.data.oracle import best_scores
from fullrank.data.split import by_time
from fullrank.data.traffic import ads, windows
from fullrank.data.truth import Ints, Truth
from fullrank.data.world import START, World
from fullrank.disk import written_whole
from fullrank.errors import DataFormatError, DataMissingError

Progress = Callable[[int], None]  # told how many more rows are done
FRACTIONS = {"train": 0.8, "valid": 0.1, "test": 0.1}  # of the days
ROW_GROUP = 131_072
GROUP_BYTES = 2**28  # of a row group in memory, however long the histories are


def simulate(world: World, folder: Path, *, progress: Progress | None = None) -> Path:
    """Writes a log, its ads and its truth into a new folder, streaming.

    Args:
        world: the dials.
        folder: must not exist; it appears complete or not at all.
        progress: called with the number of rows done since the last call.

    Returns:
        The folder.

    Raises:
        ConfigError: the folder exists.
        DiskFullError: the disk has no room; nothing is left behind.
        SplitError: so few rows that a split is empty.
    """
    _refuse_existing(folder)
    with written_whole(folder) as place:
        place.mkdir()
        truth = Truth(world)
        pq.write_table(ads(truth), place / "ads.parquet", compression="zstd")
        with _Rows(place / "log.parquet") as log, _Rows(place / "truth.parquet") as hidden:
            for rows, secret, served in windows(truth):
                log.add(rows)
                hidden.add(secret)
                if progress is not None:
                    progress(served)
        _write_json(place / "world.json", {"world": world.plain(), "starts": _starts(world)})
        _write_json(place / "truth.json", best(place))
    return folder


def read_world(folder: Path) -> World:
    """Returns the dials of a simulated log.

    Raises:
        DataMissingError: the folder holds no simulated log.
        DataFormatError: its description was changed or cut off.
    """
    return from_dict(World, _description(folder)["world"], str(folder / "world.json"))


def read_log(folder: Path) -> dict[str, pl.LazyFrame]:
    """Returns the log as "train", "valid" and "test", split by time.

    A conversion of the training split is observed only where its window closed before
    validation begins: on the day of training nobody knew more.

    Raises:
        DataMissingError: the folder holds no simulated log.
        SplitError: a split is empty.
    """
    description = _description(folder)
    world = from_dict(World, description["world"], str(folder / "world.json"))
    log = pl.scan_parquet(folder / "log.parquet")
    splits = by_time(log, "time", starts=description["starts"])
    today = description["starts"]["valid"]
    known = pl.col("time") + round(world.window_hours * 3600) <= today
    splits["train"] = splits["train"].with_columns(
        conversion=pl.col("conversion") * (pl.col("conversion_time") <= today).fill_null(False),
        conversion_time=pl.when(pl.col("conversion_time") <= today).then("conversion_time"),
        conversion_observed=pl.col("conversion_observed") & known,
    )
    return splits


def _description(folder: Path) -> dict[str, Any]:
    path = folder / "world.json"
    if not path.exists() or not (folder / "log.parquet").exists():
        raise DataMissingError(
            "there is no simulated log",
            where=str(folder),
            found="no world.json with a log.parquet",
            expected="a folder that fullrank simulate has written",
            fix=f"run: fullrank simulate --data-root {folder.parent}",
        )
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
        return {"world": description["world"], "starts": dict(description["starts"])}
    except (ValueError, KeyError, TypeError) as cause:
        raise DataFormatError(
            "the description of a simulated log cannot be read",
            where=str(path),
            found=f"{type(cause).__name__}: {cause}",
            expected='JSON with "world" and "starts"',
            fix="remove the folder and simulate again",
        ) from cause


def _starts(world: World) -> dict[str, int]:
    starts, share = {}, 0.0
    for name, fraction in FRACTIONS.items():
        starts[name] = START + round(share * world.days * 86400)
        share += fraction
    return starts


# ---- what the truth would score


def best(folder: Path) -> dict[str, dict[str, dict[str, float | None]]]:
    """Scores the true probabilities of a simulated log on each split.

    Args:
        folder: of a simulated log, truth.parquet included.

    Returns:
        Split -> "click" or "conversion" -> the scores of `fullrank.data.oracle.best_scores`.
        Conversions are scored on clicks whose window has closed.
    """
    dropped = read_world(folder).negatives_dropped
    truth = pl.scan_parquet(folder / "truth.parquet").select("p_click", "p_conversion")
    scores, first = {}, 0
    for name, rows in read_log(folder).items():
        log = rows.select("click", "conversion", "conversion_observed").collect(engine="streaming")
        # Log and truth are in the same order, which is that of time: a split is one stretch.
        hidden = truth.slice(first, len(log)).collect(engine="streaming")
        part, first = pl.concat([log, hidden], how="horizontal"), first + len(log)
        known = part.filter(pl.col("conversion_observed"))
        scores[name] = {
            "click": best_scores(
                part["p_click"].to_numpy(), part["click"].to_numpy(), negatives_dropped=dropped
            ),
            "conversion": best_scores(
                known["p_conversion"].to_numpy(), known["conversion"].to_numpy()
            ),
        }
    return scores


# ---- a wide log, for measuring how fast data is prepared


def wide_log(
    path: Path,
    rows: int,
    *,
    categorical: int = 26,
    numeric: int = 13,
    skew: float = 1.1,
    largest: int = 2_000_000,
    seed: int = 0,
    progress: Progress | None = None,
) -> Path:
    """Writes a log with many columns and skewed vocabularies, as fast as the disk allows.

    Column c1 has 4 values, the last has `largest`, sizes between rise geometrically; numbers are
    rounded log-normal counts, one in ten empty in every second column. The click depends on the
    values of the first eight categorical columns. Memory stays below 200 MB whatever `rows` is.

    Args:
        path: of the Parquet file, which appears complete or not at all.
        rows: more than 0.
        categorical: columns c1 and so on, int32 that look like hashes.
        numeric: columns n1 and so on, float32.
        skew: exponent of the Zipf law of the values; 0 draws them equally often.
        largest: values of the largest vocabulary, at least 4.
        seed: of everything that is drawn.
        progress: called with the number of rows done since the last call.

    Returns:
        The path.

    Raises:
        ConfigError: the file exists, or a count is impossible.
        DiskFullError: the disk has no room; nothing is left behind.
    """
    for name, value, least in (
        ("rows", rows, 1),
        ("categorical", categorical, 1),
        ("largest", largest, 4),
    ):
        require(
            value >= least, where=name, found=value, expected=f"at least {least}", fix="raise it"
        )
    _refuse_existing(path)
    sizes = np.geomspace(4, largest, categorical).astype(np.int64)
    tables = [_quantiles(int(size), skew) for size in sizes]
    root = np.random.SeedSequence(seed)
    count = np.random.Generator(np.random.PCG64(root)).normal(size=(numeric, 1 << 16))
    counts = np.floor(np.exp(1.5 * np.sort(count, axis=1) + 1.0)).astype(np.float32)
    with written_whole(path) as place, _Rows(place, compression="lz4") as log:
        for first in range(0, rows, ROW_GROUP):
            n = min(ROW_GROUP, rows - first)
            rng = np.random.Generator(np.random.PCG64(root.spawn(1)[0]))
            log.add(_wide_rows(rng, n, first, tables, counts))
            if progress is not None:
                progress(n)
    return path


def _quantiles(size: int, skew: float) -> tuple[Ints, Ints]:
    """Returns first value and width of 65 536 equally likely stretches of a vocabulary.

    Inside a stretch the values are equally likely, so that one table look-up and one product
    draw a value, tail included.
    """
    share = np.arange(1, size + 1, dtype=np.float64) ** -skew
    cumulative = np.cumsum(share / share.sum())
    edges = np.searchsorted(cumulative, np.arange((1 << 16) + 1) / (1 << 16))
    edges = np.minimum(edges, size - 1)
    return edges[:-1].astype(np.uint32), (np.diff(edges) + 1).astype(np.uint32)


def _wide_rows(
    rng: np.random.Generator,
    n: int,
    first: int,
    tables: list[tuple[Ints, Ints]],
    counts: NDArray[np.float32],
) -> pa.Table:
    columns: dict[str, Any] = {"time": START + first + np.arange(n)}
    logit = np.full(n, -1.5, dtype=np.float32)
    numeric = {}
    for i, table in enumerate(counts):
        at = np.frombuffer(rng.bytes(2 * n), dtype=np.uint16)
        values = table.take(at)
        # The lowest tenth of every second column is empty.
        numeric[f"n{i + 1}"] = pa.array(values, mask=at < 6554) if i % 2 else values
    for i, (start, width) in enumerate(tables):
        at = np.frombuffer(rng.bytes(2 * n), dtype=np.uint16)
        inside = np.frombuffer(rng.bytes(2 * n), dtype=np.uint16)
        value = start.take(at) + ((width.take(at).astype(np.uint64) * inside) >> 16).astype(
            np.uint32
        )
        if i < 8:  # a value raises or lowers the logit by a number that looks random
            logit += (((value + np.uint32(i + 1)) * np.uint32(2654435761)) >> np.uint32(24)).astype(
                np.float32
            ) / 128 - 1
        columns[f"c{i + 1}"] = (value * np.uint32(0x9E3779B1)).view(np.int32)  # odd: one to one
    click = rng.random(n, dtype=np.float32) < 1 / (1 + np.exp(-logit))
    return pa.table({**columns, **numeric, "click": click.astype(np.int8)})


# ---- files


class _Rows:
    """Writes tables into one Parquet file, in row groups of ROW_GROUP rows or fewer."""

    def __init__(self, path: Path, compression: str = "zstd") -> None:
        self.path, self.compression = path, compression
        self.tables: list[pa.Table] = []
        self.waiting = self.bytes = 0
        self.writer: pq.ParquetWriter | None = None

    def __enter__(self) -> _Rows:
        return self

    def add(self, table: pa.Table) -> None:
        """Adds rows; they may stay in memory until a row group is full."""
        self.tables.append(table)
        self.waiting += len(table)
        self.bytes += table.nbytes
        if self.waiting >= ROW_GROUP or self.bytes >= GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        table = pa.concat_tables(self.tables).combine_chunks()
        if self.writer is None:
            self.writer = pq.ParquetWriter(
                self.path,
                table.schema,
                compression=self.compression,
                use_dictionary=self.compression == "zstd",
            )
        self.writer.write_table(table, row_group_size=len(table))
        self.tables, self.waiting, self.bytes = [], 0, 0

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None and self.tables:
            self._flush()
        if self.writer is not None:
            self.writer.close()


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _refuse_existing(target: Path) -> None:
    require(
        not target.exists(),
        where=str(target),
        found="a file or folder of this name",
        expected="nothing there yet; a simulation never overwrites",
        fix="give another name, or remove what is there",
    )
