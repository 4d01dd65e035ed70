"""The closed list of errors that fullrank raises.

Every message has the same five parts: what is wrong, where, what was found, what was expected, and
what to do. Each class has a section in `docs/errors.md`; a test compares the two lists.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class FullrankError(Exception):
    """The base of every error raised on purpose.

    Args:
        what: one clause that says what is wrong.
        where: the file, line, column, field, table, step or key.
        found: what was there.
        expected: what should have been there.
        fix: the next thing to do.
    """

    exit_code = 1  # 1: the work failed; 2: the command was misused

    def __init__(self, what: str, *, where: str, found: str, expected: str, fix: str) -> None:
        self.what, self.where, self.found = what, where, found
        self.expected, self.fix = expected, fix
        super().__init__(what)

    def __str__(self) -> str:
        return (
            f"{self.what}\n  where:    {self.where}\n  found:    {self.found}"
            f"\n  expected: {self.expected}\n  do:       {self.fix}"
        )

    def to_dict(self) -> dict[str, str]:
        """Returns the five parts and the class name, for `--json`."""
        return {
            "error": type(self).__name__,
            "what": self.what,
            "where": self.where,
            "found": self.found,
            "expected": self.expected,
            "fix": self.fix,
        }


class ConfigError(FullrankError):
    """A setting has the wrong type, an impossible value, or an unknown key."""

    exit_code = 2


class UnknownNameError(FullrankError):
    """No model, dataset, recipe, metric or run has this name."""

    exit_code = 2


class SchemaError(FullrankError):
    """A schema contradicts itself, or a spec and its data disagree on columns."""


class BatchError(FullrankError):
    """A batch does not fit the schema of the model that reads it."""


class DataMissingError(FullrankError):
    """A file that a dataset needs is not on this machine."""


class DataFormatError(FullrankError):
    """A file is empty, truncated, binary where text was expected, or has a ragged or bad row."""


class DownloadError(FullrankError):
    """A download failed, or what arrived does not have the published checksum."""


class SplitError(FullrankError):
    """A split came out empty or looks ahead in time."""


class LeakError(FullrankError):
    """The data tells the model its own answer."""


class LabelError(FullrankError):
    """A label is outside {0, 1}."""


class MetricUndefinedError(FullrankError):
    """A metric has no value on these rows, such as AUC when all labels are equal."""


class EmptyInputError(FullrankError):
    """A measurement was asked of no rows at all."""


class IncomparableError(FullrankError):
    """Two measurements differ in matrix, metric, centring or shape and cannot be subtracted."""


class DivergedError(FullrankError):
    """A loss or a parameter became NaN or infinite, or the loss exploded."""


class StateError(FullrankError):
    """A saved training state does not belong to this model, config or data."""


class RunFolderError(FullrankError):
    """A run folder is already in use, or is not a run folder."""


class ArtifactError(FullrankError):
    """An artefact is incomplete, was changed after it was written, or does not match."""


class AuctionError(FullrankError):
    """A bid or a probability cannot enter an auction."""


class DiskFullError(FullrankError):
    """The disk has no room left; nothing half-written was kept."""


class FileAccessError(FullrankError):
    """A file or folder cannot be read or written: permissions, or a file where a folder belongs."""


class RequestError(FullrankError):
    """A request to the server cannot be answered as it stands; asking again changes nothing.

    Args:
        status: of HTTP, from 400 to 499; the others as in FullrankError.
    """

    def __init__(
        self, what: str, *, status: int = 422, where: str, found: str, expected: str, fix: str
    ) -> None:
        super().__init__(what, where=where, found=found, expected=expected, fix=fix)
        self.status = status


class OverloadedError(FullrankError):
    """The server has more to do than it can do in time; asking again later may help.

    Args:
        retry_seconds: when to ask again; the others as in FullrankError.
    """

    def __init__(
        self,
        what: str,
        *,
        retry_seconds: int = 1,
        where: str,
        found: str,
        expected: str,
        fix: str,
    ) -> None:
        super().__init__(what, where=where, found=found, expected=expected, fix=fix)
        self.retry_seconds = retry_seconds


class ExtraMissingError(FullrankError):
    """An optional library is needed for this and is not installed."""

    exit_code = 2


def nearest(name: str, options: Iterable[str]) -> str:
    """Returns a sentence that suggests the closest option, or lists all of them.

    Example:
        >>> nearest("epoch", ["epochs", "seed"])
        "did you mean 'epochs'?"
    """
    known = sorted(options)
    close = get_close_matches(name, known, n=1, cutoff=0.6)
    if close:
        return f"did you mean '{close[0]}'?"
    return "use one of: " + (", ".join(known) or "(there are none)")
