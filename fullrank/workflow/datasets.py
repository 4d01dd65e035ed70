"""The `fullrank data` and `fullrank simulate` commands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.progress import TransferSpeedColumn as SpeedColumn

from fullrank.config import override, to_dict
from fullrank.data.datasets import list_datasets, note
from fullrank.data.home import data_root, get
from fullrank.errors import DownloadError
from fullrank.workflow.console import console, table
from fullrank.workflow.data import find_dataset, is_there

_TOLD = ("name", "dtype", "empty", "distinct", "low", "high", "role", "reason", "examples")


def list_data(root: Path | None) -> dict[str, Any]:
    """Prints what is known, where it is and its licence."""
    home = data_root(root)
    found = []
    for name in list_datasets():
        source = find_dataset(name)
        found.append(
            {
                "name": name,
                "title": source.TITLE,
                "here": is_there(source, home),
                "licence": source.LICENCE,
                "home": source.HOME,
                "download": bool(source.FILES),
            }
        )
    rows = [[d["name"], d["title"], "yes" if d["here"] else "no", d["licence"]] for d in found]
    table(f"datasets in {home}", ["name", "title", "here", "licence"], rows)
    return {"data_root": str(home), "datasets": found}


def get_data(name: str, root: Path | None) -> dict[str, Any]:
    """Downloads a dataset with a bar.

    Raises:
        UnknownNameError: there is no such dataset.
        DownloadError: it cannot be downloaded; what is right is kept, what is wrong is deleted.
    """
    source, home = find_dataset(name), data_root(root)
    if not getattr(source, "FILES", ()):
        raise _by_hand(name, source, home)
    console.print(f"{source.TITLE}: {source.LICENCE}", markup=False)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), SpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task(name, total=None)

        def advance(done: int, total: int | None) -> None:
            bar.update(task, completed=done, total=total)

        paths = get(source.FILES, home, advance)
    return {"name": name, "files": [str(path) for path in paths]}


def _by_hand(name: str, source: Any, root: Path) -> DownloadError:
    page, places = getattr(source, "HOME", ""), [str(root / f) for f in source.FOLDERS]
    fix = f"get it by hand from {page or 'its owner'}, and put its files into {places[0]}"
    return DownloadError(
        "this dataset has no public download",
        where=f"dataset '{name}'",
        found="no address of a file" + (": it is here already" if is_there(source, root) else ""),
        expected="a dataset that `fullrank data list --json` shows with `download`",
        fix=f"run `{page}`" if page.startswith("fullrank ") else fix,
    )


def inspect_data(file: Path) -> dict[str, Any]:
    """Prints what is in a file and a first guess of its Spec."""
    from fullrank.data.inspect import inspect

    guess = inspect(file)
    rows = [[c.name, c.dtype, c.empty, c.distinct, c.role, c.reason] for c in guess.columns]
    table(str(file), ["column", "type", "empty", "distinct", "guess", "because"], rows)
    console.print(guess.source, markup=False, soft_wrap=True)  # to be pasted
    return {
        "file": str(file),
        "rows": guess.rows,
        "bad_rows": guess.bad_rows,
        "columns": [{key: getattr(c, key) for key in _TOLD} for c in guess.columns],
        "source": guess.source,
    }


def simulate_data(settings: tuple[str, ...], root: Path | None) -> dict[str, Any]:
    """Writes a simulated log below the data root and prints the best possible scores."""
    import json

    source = find_dataset("simulated")
    from fullrank.data.world import World

    world = World()
    for setting in settings:
        world = override(world, setting)
    with Progress(console=console) as bar:
        task = bar.add_task("simulating", total=world.num_rows)
        folder = source.ensure(
            data_root(root), world, progress=lambda rows: bar.advance(task, rows)
        )
    truth = json.loads((folder / "truth.json").read_text())
    console.print(f"wrote {folder}\n{note(source, data_root(root))}", markup=False, soft_wrap=True)
    return {"folder": str(folder), "world": to_dict(world), "truth": truth}
