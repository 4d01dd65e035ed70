"""The lookups of a run: made from its training rows, kept in its folder, and resumed from there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from fullrank.config import from_dict, require, to_dict
from fullrank.data.prepare import Prepared
from fullrank.data.pretrain import Pretrained, later
from fullrank.disk import written_whole
from fullrank.errors import StateError
from fullrank.lookup import Lookup, Provenance


class AssetSource(Protocol):
    """Says how lookups are made. A frozen dataclass: its fields stand in the records of the run.

    `fullrank.data.pretrain.PretrainedVectors` is one.
    """

    def make(self, data: Prepared) -> Pretrained:
        """Returns lookups by name, and the time from which the model may train."""
        ...


def make_assets(sources: Sequence[AssetSource], data: Prepared) -> Pretrained:
    """Returns the lookups of all sources; training begins where the last of them ends.

    Raises:
        ConfigError: two sources make a lookup of the same name.
    """
    lookups: dict[str, Lookup] = {}
    ends = []
    for source in sources:
        made = source.make(data)
        twice = sorted(lookups.keys() & made.lookups.keys())
        require(
            not twice,
            where="Recipe.assets",
            found="twice: " + ", ".join(twice),
            expected="each lookup once",
            fix="leave one of the sources out",
        )
        lookups |= made.lookups
        ends += [] if made.since is None else [made.since]
    return Pretrained(lookups, max(ends, default=None))


def unused_rows(data: Prepared, assets: Pretrained) -> Prepared:
    """Returns the data without the training rows that the lookups know.

    Raises:
        SplitError: no training row is left.
    """
    if assets.since is None:
        return data
    return replace(data, splits=data.splits | {"train": later(data.splits["train"], assets.since)})


def write_assets(path: Path, assets: Pretrained) -> None:
    """Writes the lookups into one file, whole or not at all.

    Raises:
        DiskFullError: the disk is full.
    """
    about = {n: {"key": x.key, "source": to_dict(x.source)} for n, x in assets.lookups.items()}
    text = json.dumps({"since": assets.since, "lookups": about})
    with written_whole(path) as draft:
        save_file({n: x.values for n, x in assets.lookups.items()}, draft, {"assets": text})


def read_assets(path: Path) -> Pretrained:
    """Reads what `write_assets` wrote.

    Raises:
        StateError: the file is missing or damaged.
    """
    try:
        with safe_open(path, "pt") as file:
            about = json.loads(file.metadata()["assets"])
            lookups = {
                n: Lookup(x["key"], file.get_tensor(n), from_dict(Provenance, x["source"]))
                for n, x in about["lookups"].items()
            }
            return Pretrained(lookups, about["since"])
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as cause:
        raise StateError(
            "the lookups of an interrupted run cannot be read",
            where=str(path),
            found=f"{type(cause).__name__}: {cause}",
            expected="the file that the run began with",
            fix="start the run anew with --overwrite",
        ) from cause
