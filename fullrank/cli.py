"""The `fullrank` command: argument parsing and nothing else.

Nothing heavy is imported before a command runs, so `--help` answers at once.
"""

# One class per command, each no more than its settings and their help: longer than it is intricate.
from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import tyro
from tyro.conf import Positional, UseAppendAction, subcommand

from fullrank.config import require
from fullrank.errors import ConfigError, FullrankError, nearest

_ABOUT = "Ranking models that keep their rank: train, diagnose, compare, export."
Settings = Annotated[tuple[str, ...], UseAppendAction]


@dataclass(frozen=True, kw_only=True)
class Command:
    """What every command understands."""

    json: bool = False
    """Print one JSON object as the last line; everything for people goes to the error stream."""


@dataclass(frozen=True, kw_only=True)
class RowsCommand(Command):
    """What every command that reads raw rows understands."""

    bad_rows: Literal["refuse", "quarantine"] = "refuse"
    """Stop at a row that cannot be read, or go on and write all of them to a file with reasons."""
    quarantine: Path = Path("bad_rows.jsonl")
    """The file for bad rows."""

    def options(self) -> Any:
        """Returns the settings as workflow.data.DataOptions."""
        from fullrank.workflow.data import DataOptions

        return DataOptions(bad_rows=self.bad_rows, quarantine=self.quarantine)


@dataclass(frozen=True, kw_only=True)
class DataCommand(RowsCommand):
    """What every command that reads datasets understands."""

    data_root: Path | None = None
    """Folder of raw data; else FULLRANK_DATA, else the platform's cache folder."""
    cache: Path | None = None
    """Folder of prepared data; else the platform's cache folder."""

    def options(self) -> Any:
        """Returns the settings as workflow.data.DataOptions."""
        from fullrank.workflow.data import DataOptions

        return DataOptions(
            root=self.data_root,
            cache=self.cache,
            bad_rows=self.bad_rows,
            quarantine=self.quarantine,
        )


@dataclass(frozen=True, kw_only=True)
class Demo(DataCommand):
    """Train three rankers on a real log, see which loses rank, and score raw rows with the best."""

    out: Path = Path("runs/demo")
    """Folder for the runs and the report."""

    def run(self) -> dict[str, Any]:
        """Runs the command."""
        from fullrank.workflow.demo import demo

        return demo(self.out, self.options())


@dataclass(frozen=True, kw_only=True)
class DataList(Command):
    """List the datasets that fullrank knows, where they are and under which licence."""

    data_root: Path | None = None
    """Folder of raw data; else FULLRANK_DATA, else the platform's cache folder."""

    def run(self) -> dict[str, Any]:
        """Runs the command."""
        from fullrank.workflow.datasets import list_data

        return list_data(self.data_root)


@dataclass(frozen=True, kw_only=True)
class DataGet(Command):
    """Download a dataset from its official home, checked and resumable."""

    name: Positional[str]
    """A name of `fullrank data list`."""
    data_root: Path | None = None
    """Folder of raw data; else FULLRANK_DATA, else the platform's cache folder."""

    def run(self) -> dict[str, Any]:
        """Runs the command."""
        from fullrank.workflow.datasets import get_data

        return get_data(self.name, self.data_root)


@dataclass(frozen=True, kw_only=True)
class DataInspect(Command):
    """Look at a CSV, Parquet or Arrow file or folder and print a first guess of its Spec."""

    file: Positional[Path]
    """File or folder."""

    def run(self) -> dict[str, Any]:
        """Runs the command."""
        from fullrank.workflow.datasets import inspect_data

        return inspect_data(self.file)


@dataclass(frozen=True, kw_only=True)
class Simulate(Command):
    """Write an ad log with known truth: users, ads, position bias, delayed conversions."""

    set: Settings = ()
    """A dial, such as num_rows=50000 or seed=3; may be repeated."""
    data_root: Path | None = None
    """Where to write; else FULLRANK_DATA, else the platform's cache folder."""

    def run(self) -> dict[str, Any]:
        """Runs the command."""
        from fullrank.workflow.datasets import simulate_data

        return simulate_data(self.set, self.data_root)


@dataclass(frozen=True, kw_only=True)
class Recipes(Command):
    """List the recipes that ship with fullrank."""

    def run(self) -> dict[str, Any]:
        """Runs the command."""
        from fullrank.workflow.show import list_recipes_table

        return list_recipes_table()


@dataclass(frozen=True, kw_only=True)
class Models(Command):
    """List the models that ship with fullrank, with their settings."""

    def run(self) -> dict[str, Any]:
        """Runs the command."""
        from fullrank.workflow.show import list_models_table

        return list_models_table()


@dataclass(frozen=True, kw_only=True)
class Train(DataCommand):
    """Train a recipe, measure it on the held-out split, diagnose it and save an artefact."""

    recipe: Positional[str]
    """A name of `fullrank recipes`, or a Python file of your own with a function recipe()."""
    set: Settings = ()
    """A setting, such as train.epochs=2 or config.dim=16; may be repeated."""
    out: Path | None = None
    """Run folder; runs/RECIPE by default."""
    resume: bool = False
    """Go on from the saved state."""
    overwrite: bool = False
    """Empty a folder that holds another run."""
    no_diagnose: bool = False
    """Leave the collapse diagnostics out."""

    def run(self) -> dict[str, Any]:
        """Runs the command."""
        from fullrank.workflow.show import train_command

        return train_command(self)


@dataclass(frozen=True, kw_only=True)
class Evaluate(RowsCommand):
    """Measure a trained run or artefact again, on its test split or on a file of raw rows."""

    run_or_artifact: Positional[Path]
    """A run folder or an artefact folder."""
    file: Path | None = None
    """CSV, Parquet or Arrow file of raw rows with labels; the test split of the run by default."""

    def run(self) -> dict[str, Any]:
        """Runs the command."""
        from fullrank.workflow.apply import evaluate_command

        return evaluate_command(self.run_or_artifact, self.file, self.options())


@dataclass(frozen=True, kw_only=True)
class Diagnose(Command):
    """Measure where finished runs lose rank and write report.html into the first of them."""

    runs: Positional[tuple[Path, ...]]
    """Run folders; several are drawn side by side."""
    out: Path | None = None
    """Where to write the report; report.html in the first folder by default."""

    def run(self) -> dict[str, Any]:
        """Runs the command."""
        require(
            bool(self.runs),
            where="fullrank diagnose",
            found="no run",
            expected="at least one run folder",
            fix="name a folder that `fullrank train` finished, such as runs/demo/demo_dcnv2",
        )
        from fullrank.workflow.diagnosis import diagnose_command

        return diagnose_command(self.runs, self.out)


@dataclass(frozen=True, kw_only=True)
class Compare(DataCommand):
    """Train recipes over several seeds and say which one, and why: tables, pictures, one page."""

    recipes: Positional[tuple[str, ...]]
    """Names or files; the first is the one that the others are compared with."""
    seeds: int = 5
    """How many seeds, from 1 up."""
    set: Settings = ()
    """A setting for every recipe; may be repeated."""
    name: str = "comparison"
    """Name of the files in `out`."""
    out: Path = Path("docs/results")
    """Folder for the tables, the pictures and the page."""
    runs: Path = Path("runs/compare")
    """Folder for the results of single runs; finished ones are not run again."""
    processes: int | None = None
    """Runs at the same time, each with one thread; the number of cores by default."""
    no_diagnose: bool = False
    """Do not look into the models of the first seed; the page that says why is then left out."""

    def run(self) -> dict[str, Any]:
        """Runs the command."""
        from fullrank.workflow.compare import compare_command

        return compare_command(self)


@dataclass(frozen=True, kw_only=True)
class Export(Command):
    """Copy the artefact of a run to where it will be served, checked."""

    source: Positional[Path]
    """A run folder or an artefact folder."""
    out: Positional[Path]
    """An artefact folder; a name that ends with .pt2 or .onnx is a program alone."""
    format: Literal["artifact", "torch-export", "onnx"] = "artifact"
    """A program to add for other engines, equal to eager scores to 1e-6."""
    calibrate: Literal["none", "auto", "platt", "isotonic"] = "none"
    """Fit served probabilities on validation rows of the run; auto leaves healthy ones alone."""
    negative_rate: float = 1.0
    """Share of the negatives that were kept when the log was thinned out, corrected for."""

    def run(self) -> dict[str, Any]:
        """Runs the command."""
        from fullrank.workflow.apply import export_command
        from fullrank.workflow.calibration import Calibrate

        how = Calibrate(method=self.calibrate, negative_rate=self.negative_rate)
        return export_command(self.source, self.out, self.format, how)


@dataclass(frozen=True, kw_only=True)
class Predict(RowsCommand):
    """Score a file of raw rows of any length with an artefact, or replay what it has served."""

    artifact: Positional[Path]
    """An artefact folder, or a run folder that has one."""
    file: Positional[Path | None] = None
    """CSV, JSON lines, Parquet or Arrow file of raw rows; labels are not needed."""
    out: Path | None = None
    """Parquet or CSV file for the rows with their probabilities; ten rows are shown without."""
    check: Path | None = None
    """Instead of a file: a shadow log, whose rows must replay to the bit. Exit code 1 if not."""

    def run(self) -> dict[str, Any]:
        """Runs the command."""
        require(
            (self.file is None) != (self.check is None) and not (self.out and self.check),
            where="fullrank predict",
            found=f"file {self.file}, --check {self.check}, --out {self.out}",
            expected="a file of raw rows, with or without --out, or --check LOG alone",
            fix="name one of them",
        )
        if self.check:
            from fullrank.workflow.replay import check_command

            return check_command(self.artifact, self.check)
        from fullrank.workflow.apply import predict_command

        assert self.file is not None
        return predict_command(self.artifact, self.file, self.out, self.options())


@dataclass(frozen=True, kw_only=True)
class Index(RowsCommand):
    """Encode a catalogue with a two-tower artefact, so that items can be retrieved."""

    artifact: Positional[Path]
    """An artefact folder, or a run folder that has one; the index is written into it."""
    items: Positional[Path]
    """CSV, Parquet or Arrow file with one row per item."""
    bid: str = ""
    """Column with bids for auctions, whole numbers in millionths of the currency's unit."""
    search: Literal["exact", "hnsw"] = "exact"
    """"hnsw" keeps a graph for approximate search too, and measures what that misses."""

    def run(self) -> dict[str, Any]:
        """Runs the command."""
        from fullrank.workflow.index import index_command

        return index_command(self.artifact, self.items, self.bid, self.search, self.options())


@dataclass(frozen=True, kw_only=True)
class Serve(Command):
    """Serve an artefact over HTTP: scores, rankings and auctions; see GET /openapi.json."""

    artifact: Positional[Path]
    """An artefact folder, or a run folder that has one; read again at SIGHUP and /v1/reload."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for every network."""
    port: int = 8000
    """Port to listen on; 0 takes a free one and prints it."""
    workers: int = 1
    """Processes; one that dies is replaced."""
    token_file: Path | None = None
    """File with tokens, one a line: /v1 then asks for `Authorization: Bearer TOKEN`."""
    max_batch: int = 1024
    """Rows of one forward pass that requests share."""
    max_wait_ms: float = 0.0
    """How long an idle model waits for company."""
    queue_rows: int = 20_000
    """Rows that may wait; more are refused with status 429."""
    max_rows: int = 5000
    """Rows or candidates of one request."""
    max_body_mb: float = 16.0
    """Size of one request."""
    deadline_ms: float = 1000.0
    """When an answer is due; a request may say otherwise with ?deadline_ms=."""
    threads: int = 1
    """Threads of torch in each process."""
    form: Literal["eager", "torch-export", "onnx"] = "eager"
    """What runs the model: torch, torch with its exported graph, or onnxruntime."""
    search: Literal["exact", "hnsw"] = "exact"
    """How items of an index are found; hnsw looks at few, and says at start what it misses."""
    shadow_log: Path | None = None
    """Folder for some of the served rows, which `fullrank predict --check` replays."""
    shadow_every: int = 1009
    """Of how many rows one is written; best a prime, so that it meets every place of a request."""
    shadow_mb: float = 256.0
    """Size of the shadow log; the oldest rows make room for new ones."""

    def run(self) -> dict[str, Any]:
        """Runs the command."""
        from fullrank.workflow.serving import serve_command

        return serve_command(self)


Data = (
    Annotated[DataList, subcommand("list")]
    | Annotated[DataGet, subcommand("get")]
    | Annotated[DataInspect, subcommand("inspect")]
)
AnyCommand = (
    Annotated[Demo, subcommand("demo")]
    | Annotated[Data, subcommand("data", description="List, download or inspect data.")]
    | Annotated[Simulate, subcommand("simulate")]
    | Annotated[Recipes, subcommand("recipes")]
    | Annotated[Models, subcommand("models")]
    | Annotated[Train, subcommand("train")]
    | Annotated[Evaluate, subcommand("evaluate")]
    | Annotated[Diagnose, subcommand("diagnose")]
    | Annotated[Compare, subcommand("compare")]
    | Annotated[Export, subcommand("export")]
    | Annotated[Predict, subcommand("predict")]
    | Annotated[Index, subcommand("index")]
    | Annotated[Serve, subcommand("serve")]
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line.

    Returns:
        0 done, 1 failed or interrupted, 2 misuse.
    """
    asked = list(sys.argv[1:] if argv is None else argv)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            command: Any = tyro.cli(
                AnyCommand,
                prog="fullrank",
                description=_ABOUT,
                args=asked,
                config=(
                    tyro.conf.FlagCreatePairsOff,
                    tyro.conf.OmitArgPrefixes,
                    tyro.conf.OmitSubcommandPrefixes,
                ),
            )
    except SystemExit as ended:
        sys.stderr.write(said.getvalue())
        return _misused(asked, said.getvalue()) if ended.code else 0
    except BrokenPipeError:
        return _unread()
    return _run(command)


def _run(command: Any) -> int:
    """Runs a parsed command; every failure that a user can cause ends in five parts."""
    from fullrank.workflow.console import console, finish_with, refused

    console.stderr = command.json  # the output stream then holds the JSON object alone
    result: dict[str, Any] | FullrankError
    try:
        try:
            result = command.run()
        except FullrankError as error:
            result = error
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            result = {"interrupted": True}
        return finish_with(result, command.json)
    except BrokenPipeError:
        return _unread()
    except OSError as error:
        return finish_with(refused(error), command.json)
    finally:
        console.stderr = False


def _unread() -> int:
    """Ends quietly when whoever read our output has left, as `head` does."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1


def _misused(asked: list[str], said: str) -> int:
    """Ends a command line that could not be parsed; people have read what tyro says about it."""
    lines = [line.strip("│╭╮╰╯─ ") for line in said.splitlines()]
    fix = " ".join(line for line in lines if line)[:600]
    commands = [m.name for kind in get_args(AnyCommand) for m in kind.__metadata__]
    if asked and not asked[0].startswith("-") and asked[0] not in commands:
        fix = nearest(asked[0], commands)
        sys.stderr.write(f"there is no command '{asked[0]}': {fix}\n")
    if "--json" in asked:
        from fullrank.workflow.console import finish_with

        error = ConfigError(
            "the command line is not understood",
            where="fullrank " + " ".join(asked),
            found=next((line for line in lines if line), "an option or value that is not known"),
            expected="a command and its options, as in `fullrank --help`",
            fix=fix,
        )
        finish_with(error, as_json=True, silent=True)
    return ConfigError.exit_code
