"""Public datasets: one dataset, one file."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from fullrank.errors import UnknownNameError, nearest

if TYPE_CHECKING:
    import polars as pl

    from fullrank.data.home import RemoteFile
    from fullrank.data.spec import Spec
    from fullrank.data.text import BadRows

_NOT_DATASETS = ("tabular",)


class Dataset(Protocol):
    """What a dataset module, or a dataset made of a user's files, offers."""

    @property
    def NAME(self) -> str:  # noqa: N802  a module's constant
        """The name in commands and run folders."""
        ...

    @property
    def FOLDERS(self) -> tuple[str, ...]:  # noqa: N802
        """Paths below the data root that hold its files: prepared data is made anew when one of
        these changes.
        """
        ...

    @property
    def TITLE(self) -> str:  # noqa: N802
        """The name in reports."""
        ...

    @property
    def LICENCE(self) -> str:  # noqa: N802
        """What its owners allow."""
        ...

    @property
    def HOME(self) -> str:  # noqa: N802
        """The official page."""
        ...

    @property
    def NOTE(self) -> str:  # noqa: N802
        """What must be said beside any number; "" for nothing."""
        ...

    @property
    def FILES(self) -> tuple[RemoteFile, ...]:  # noqa: N802
        """What `fullrank data get` downloads; none: by hand from HOME."""
        ...

    @property
    def SPEC(self) -> Spec:  # noqa: N802
        """What the columns mean."""
        ...

    def load(self, root: Path, bad_rows: BadRows) -> dict[str, pl.LazyFrame]:
        """Reads the files under the data root into "train", "valid" and "test"."""
        ...

    def sample(self) -> pl.DataFrame:
        """Returns a few hundred rows of train."""
        ...


def list_datasets() -> list[str]:
    """Returns the names of all datasets in this folder, sorted; imports none of them."""
    names = (path.stem for path in Path(__file__).parent.glob("*.py"))
    return sorted(n for n in names if n[0] != "_" and n not in _NOT_DATASETS)


def dataset(name: str | Path, spec: Spec | None = None) -> Dataset:
    """Finds a dataset.

    Args:
        name: of a module in this folder; a dotted path to a module of your own with the same
            contents; or, with a spec, a CSV, Parquet or Arrow file or folder.
        spec: what the columns of the file mean.

    Raises:
        UnknownNameError: there is no such dataset.

    Example:
        >>> dataset("frappe").SPEC.item
        'item'
    """
    if spec is not None:
        from fullrank.data.datasets.tabular import from_files

        return from_files(Path(name), spec)
    name = str(name)
    if name in list_datasets():
        return cast(Dataset, import_module(f"{__name__}.{name}"))
    if "." in name and all(part.isidentifier() for part in name.split(".")):
        try:
            return cast(Dataset, import_module(name))
        except ModuleNotFoundError as error:
            if error.name is None or not name.startswith(error.name):
                raise  # the module is there, and lacks something itself
    raise UnknownNameError(
        "there is no such dataset",
        where="dataset",
        found=f"'{name}'",
        expected="a name, a dotted path to a module, or a file together with a spec",
        fix=nearest(name, list_datasets()),
    )


def note(named: str | Dataset, root: Path) -> str:
    """Returns what a report must say about the files that are read from this root."""
    found = dataset(named) if isinstance(named, str) else named
    of_root = getattr(found, "note", None)
    return str(of_root(root)) if of_root else getattr(found, "NOTE", "")
