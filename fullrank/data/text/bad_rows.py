"""Bad rows: what counts as one, and what happens to it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import polars as pl

from fullrank.disk import raise_if_full
from fullrank.errors import ConfigError, DataFormatError, LabelError

Kind = Literal["int", "float", "text", "label", "late_label"]  # a late label may still be empty
_TEXT_SHOWN = 2_000  # characters of a bad row that are kept


class BadRow(NamedTuple):
    """A row that cannot be used.

    `line` counts lines of a text file, or rows of a columnar file, from 1; `label` says that it is
    the label that is wrong.
    """

    file: str
    line: int
    reason: str
    text: str
    expected: str
    label: bool


class BadRows:
    """Decides what happens to bad rows, and remembers how many there were.

    Args:
        policy: "refuse" raises at the first bad row; "quarantine" leaves bad rows out and writes
            all of them to `path`.
        path: JSON lines with the keys file, line, reason and text (at most 2,000 characters of
            it). Whole lines are appended as they come; a file of an earlier run is replaced.

    Raises:
        ConfigError: "quarantine" without a path.

    Example:
        >>> BadRows().policy
        'refuse'
    """

    def __init__(
        self, policy: Literal["refuse", "quarantine"] = "refuse", path: Path | None = None
    ) -> None:
        if policy == "quarantine" and path is None:
            raise ConfigError(
                "quarantined rows have nowhere to go",
                where="BadRows(path)",
                found="no path",
                expected="a file for the bad rows",
                fix="name a file, such as bad_rows.jsonl",
            )
        self.policy: Literal["refuse", "quarantine"] = policy
        self.path = path
        self.count = 0

    def take(self, rows: list[BadRow]) -> None:
        """Refuses or keeps bad rows.

        Raises:
            LabelError: the policy is "refuse" and the first row has a wrong label.
            DataFormatError: the policy is "refuse" and the first row is bad otherwise.
            DiskFullError: there is no room for the file of bad rows.
        """
        if not rows:
            return
        if self.policy == "refuse":
            row = rows[0]
            raise (LabelError if row.label else DataFormatError)(
                "a label is outside {0, 1}" if row.label else "a row is bad",
                where=f"{row.file}, line {row.line:,}",
                found=f"{row.reason}, in: {row.text[:200]}",
                expected=row.expected,
                fix="correct the row, or go on without bad rows with `--bad-rows quarantine`",
            )
        self._keep(rows)
        self.count += len(rows)

    def _keep(self, rows: list[BadRow]) -> None:
        assert self.path is not None
        lines = [
            json.dumps(
                {"file": r.file, "line": r.line, "reason": r.reason, "text": r.text[:_TEXT_SHOWN]},
                ensure_ascii=False,
            )
            for r in rows
        ]
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a" if self.count else "w", encoding="utf-8") as file:
                file.write("\n".join(lines) + "\n")
        except OSError as error:
            raise_if_full(error, self.path)
            raise


@dataclass(frozen=True)
class Finding:
    """Why a row is bad: the reason, what was expected, and whether the label is wrong."""

    reason: str
    expected: str
    label: bool = False


def bad_value(name: str, kind: Kind) -> pl.Expr:
    """Returns a boolean expression: the value of column `name` is bad for its kind."""
    column = pl.col(name)
    if kind == "float":
        return ~column.is_finite().fill_null(True)
    if kind in ("label", "late_label"):
        return ~column.cast(pl.Float64).is_in([0.0, 1.0]).fill_null(kind == "late_label")
    return pl.lit(False)


def find_bad(frame: pl.DataFrame, kinds: Mapping[str, Kind]) -> dict[int, Finding]:
    """Returns the rows of a frame with NaN, infinity or a label outside {0, 1}, with the finding.

    Args:
        frame: columns are numeric where the kind is "float" or a label.
        kinds: column -> kind.
    """
    checked = {n: k for n, k in kinds.items() if k in ("float", "label", "late_label")}
    if not checked or frame.height == 0:
        return {}
    flags = frame.lazy().select(bad_value(n, k).any().alias(n) for n, k in checked.items())
    found: dict[int, Finding] = {}
    for name, is_bad in flags.collect().row(0, named=True).items():
        if not is_bad:
            continue
        kind = checked[name]
        rows = frame.select(bad_value(name, kind)).to_series().arg_true()
        for row, value in zip(rows.to_list(), frame[name].gather(rows).to_list(), strict=True):
            what = f"{name} is {'empty' if value is None else value}"
            expected = "a finite number" if kind == "float" else "0 or 1"
            if kind == "float":
                expected += "; a text that stands for 'no value' belongs in Dialect(null=...)"
            found.setdefault(row, Finding(what, expected, label=kind != "float"))
    return found
