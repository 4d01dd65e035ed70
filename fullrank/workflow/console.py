"""The terminal: tables, bars and errors for people, and one JSON object for programs."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from fullrank.disk import raise_if_full
from fullrank.errors import FileAccessError, FullrankError

console = Console(highlight=False)  # with --json, people read the error stream


def finish_with(
    result: dict[str, Any] | FullrankError, as_json: bool, *, silent: bool = False
) -> int:
    """Prints the end of a command and returns its exit code.

    Args:
        result: of the command, or why there is none. An error goes to the error stream. Rows that
            a check found unequal are a failure, as is an interruption.
        as_json: print one JSON object as the last line of the output stream.
        silent: people have been told already.
    """
    if isinstance(result, FullrankError):
        plain: dict[str, Any] = result.to_dict()
        code = result.exit_code
        if not silent:
            errors = Console(highlight=False, stderr=True)
            errors.print(f"[bold red]error[/] {type(result).__name__}")
            errors.print(str(result), markup=False, soft_wrap=True)
    else:
        plain, code = result, 1 if result.get("interrupted") or result.get("unequal") else 0
    if as_json:
        sys.stdout.write(json.dumps(_finite(plain), allow_nan=False, default=str) + "\n")
        sys.stdout.flush()
    return code


def refused(error: OSError) -> FullrankError:
    """Returns what the operating system refused, in five parts; a full disk is named as such."""
    named = str(error.filename2 or error.filename or "")
    try:
        raise_if_full(error, Path(named))
    except FullrankError as full:
        return full
    return FileAccessError(
        "a file or folder cannot be read or written",
        where=named or "the operating system",
        found=f"{type(error).__name__}: {error.strerror or error}",
        expected="a path that this user may read and write",
        fix="correct the path or its permissions, or choose another place",
    )


def _finite(value: Any) -> Any:
    """Returns the same value with None for NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def table(title: str, columns: list[str], rows: list[list[Any]]) -> None:
    """Prints a table; numbers stand on the right."""
    console.print(title, style="bold", markup=False, soft_wrap=True)
    made = Table()
    for i, column in enumerate(columns):
        number = bool(rows) and all(isinstance(row[i], int | float | None) for row in rows)
        made.add_column(escape(column), justify="right" if number else "left", overflow="fold")
    for row in rows:
        made.add_row(*(escape(shown(value)) for value in row))
    console.print(made)


def shown(value: Any) -> str:
    """Returns a value as people read it."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4f}" if abs(value) < 100 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


@contextmanager
def preparing(doing: str = "preparing") -> Iterator[Callable[[str, int, int | None], None]]:
    """Shows a bar with rate per split, and ETA where the total is known, while rows are worked on.

    Args:
        doing: what is done to them.
    """
    columns = (
        TextColumn(doing + " {task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]} rows/s"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=False) as bar:
        tasks: dict[str, Any] = {}

        def advance(split: str, done: int, total: int | None) -> None:
            if split not in tasks:
                tasks[split] = bar.add_task(split, total=total, rate="-")
            elapsed = bar.tasks[tasks[split]].elapsed or 0.0
            rate = f"{done / elapsed:,.0f}" if elapsed > 0.01 else "-"
            bar.update(tasks[split], completed=done, rate=rate)

        yield advance
