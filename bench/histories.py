"""DIN and DIEN on long histories: fullrank against other libraries, and against its own bare step.

    python bench/peers.py --setup                 # once: virtual environments in bench/.envs
    python bench/histories.py --repeats 3

Everybody trains on the same rows of MovieLens 1M: a movie that was rated or one drawn beside it,
after up to 200 movies that the user rated before; fields are the user and the movie. Embedding 16,
attention 64, state 16, auxiliary network 100-50 or inner product, deep network 512-256-128, Adam
1e-3, batches of 1,024, no L2, no dropout, one thread, each in a process and an environment of its
own. Repeats are interleaved; figures are medians. CPU seconds are those of the whole process tree,
wall seconds stand beside them.

Rows are taken as they are, half full on average, or "all full": only those whose history has all
200 events, where nobody computes for padding. Everybody starts from text: fullrank and FuxiCTR read
one CSV file, RecBole an .inter file with the same rows. The bare steps are those of the same model
with the same optimisers on batches that lie in memory. Negatives are drawn evenly, so that a few
dozen steps already lift the AUC and show that everybody learns.
"""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from peers import HISTORIES, adopt_orphans, environments, launch, median  # type: ignore[attr-defined]
from record import THREADS, WORK, Record, Target

HERE = Path(__file__).resolve().parent
LENGTH = 200
PARTS = ("train", "valid", "test")
MANY, FEW = (40_960, 4_096, 8_192), (4_096, 1_024, 4_096)  # rows of each part


class Case(NamedTuple):
    """What is measured: a model, on which rows, and who runs in which order."""

    model: str
    rows: tuple[int, int, int]
    names: tuple[str, ...]
    only_full: bool = False


# RecBole's DIEN needs minutes for 40,000 rows: it gets few, and so does everybody beside it. The
# bare steps, which need a longer measurement, have cases of their own.
CASES = {
    "DIN": Case("din", MANY, ("fuxictr", "recbole", "fullrank", "bare")),
    "DIEN": Case("dien", FEW, ("recbole", "fullrank")),
    "DIEN, product": Case("dien_product", FEW, ("torch_rechub", "fullrank")),
    "DIEN, many": Case("dien", MANY, ("fullrank", "bare")),
    "DIN, all full": Case("din", MANY, ("fuxictr", "recbole", "fullrank", "bare"), only_full=True),
    "DIEN, all full": Case("dien", FEW, ("recbole", "fullrank"), only_full=True),
    "DIEN, product, all full": Case(
        "dien_product", FEW, ("torch_rechub", "fullrank"), only_full=True
    ),
}
FASTER, OF_BARE = 1.5, 0.9  # than the best peer, and of the bare step


def main() -> None:
    options = parse()
    os.environ.update(THREADS)
    adopt_orphans()
    wanted = [c for c in CASES if not options.cases or c in options.cases]
    about = {case: write(case) for case in wanted}
    runs = []
    for repeat in range(options.repeats):
        for case in wanted:
            for name in CASES[case].names:
                if not options.only or name in options.only:
                    runs.append(run(name, case, repeat, options.epochs))
    done = [r for r in runs if "phases" in r]
    report(done, [r for r in runs if "failure" in r], about, options)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--cases", nargs="*", default=[], metavar="CASE")
    parser.add_argument("--only", nargs="*", default=[], metavar="CONTESTANT")
    return parser.parse_args()


def folder_of(case: str) -> Path:
    """Where the rows of a case lie."""
    return WORK / "histories" / case.lower().replace(", ", "_").replace(" ", "_")


def run(name: str, case: str, repeat: int, epochs: int) -> dict[str, Any]:
    """Runs one contestant of one case."""
    data = folder_of(case)
    work = WORK / "run" / f"histories_{name}" / data.name
    if repeat == 0 or name != "fuxictr":  # its preparation can take minutes
        shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True, exist_ok=True)
    script = "fullrank" if name == "bare" else name
    options = ["--model", CASES[case].model, "--epochs", str(epochs), "--data", str(data)]
    options += ["--bare"] if name == "bare" else []
    return launch(name, script + HISTORIES, case, repeat, work, options)


def write(case: str) -> dict[str, float]:
    """Draws the rows, writes every contestant's input; returns what is to be known of them."""
    from fullrank.data.datasets.ml_1m_impressions import MovieLensImpressions
    from fullrank.data.text import BadRows

    log = MovieLensImpressions(length=LENGTH, negatives="uniform")
    random = np.random.default_rng(0)
    for kind in ("csv", "recbole/histories"):
        (folder_of(case) / kind).mkdir(parents=True, exist_ok=True)
    about = {}
    for part, split in log.load(Path(os.environ.get("FULLRANK_DATA", "")), BadRows()).items():
        table = split.select("user", "item", "click", history="history_item").collect()
        if CASES[case].only_full:
            table = table.filter(pl.col("history").list.len() == LENGTH)
        rows = CASES[case].rows[PARTS.index(part)]
        table = table[np.sort(random.permutation(len(table))[:rows])]
        events = int(table["history"].list.len().sum())
        about[part] = {"rows": len(table), "mean length": events / len(table)}
        _write_csv(table, folder_of(case) / "csv" / f"{part}.csv")
        _write_inter(table, folder_of(case) / "recbole/histories", part, random)
    return about["train"]


def _write_csv(table: pl.DataFrame, path: Path) -> None:
    joined = pl.col("history").cast(pl.List(pl.String)).list.join("^")
    table.with_columns(joined).write_csv(path)


def _write_inter(table: pl.DataFrame, folder: Path, part: str, random: np.random.Generator) -> None:
    """The rows for RecBole; the events that did not follow, which its DIEN reads, are drawn."""
    items = np.unique(table["history"].explode().to_numpy())
    lengths = table["history"].list.len()
    drawn = pl.DataFrame(
        {
            "row": np.repeat(np.arange(len(table)), lengths.to_numpy()),
            "item": random.choice(items, int(lengths.sum())),
        }
    )
    strange = drawn.group_by("row", maintain_order=True).agg("item")["item"]

    def joined(past: pl.Series) -> pl.Series:
        return past.cast(pl.List(pl.String)).list.join(" ")

    pl.DataFrame(
        {
            "user_id:token": table["user"],
            "item_id:token": table["item"],
            "item_id_list:token_seq": joined(table["history"]),
            "neg_item_id_list:token_seq": joined(strange),
            "label:float": table["click"],
        }
    ).write_csv(folder / f"histories.{part}.inter", separator="\t")


def report(
    runs: list[dict[str, Any]],
    failures: list[dict[str, Any]],
    about: dict[str, dict[str, float]],
    options: argparse.Namespace,
) -> None:
    """Medians per contestant and case, with the promised ratios."""
    record = Record("histories", "DIN and DIEN on MovieLens 1M, histories of up to 200, one thread")
    record.machine |= {"epochs": options.epochs, "repeats": options.repeats}
    for case in dict.fromkeys(r["case"] for r in runs):
        groups = {
            n: [r for r in runs if (r["name"], r["case"]) == (n, case)] for n in CASES[case].names
        }
        groups = {name: group for name, group in groups.items() if group}
        record.rows += [_row(case, group, groups.get("fullrank", [])) for group in groups.values()]
        if "fullrank" in groups:
            record.targets += _targets(case, groups)
    record.notes = [
        *(
            f"{case}: {a['rows']:,} rows for training, {a['mean length']:.0f} past events each on "
            "average."
            for case, a in about.items()
        ),
        "The whole job runs from the start of the process to the test AUC: imports, preparation, "
        "training, validation after each epoch, test. The steady state is the training alone.",
        "FuxiCTR prepares on Ray, in the first repeat; its other repeats start from what that one "
        "left, and its whole job is that of the first.",
        "FuxiCTR and fullrank have Dice in the attention and ReLU in the deep network. RecBole has "
        "sigmoid, which is cheaper, in the attention, and batch norm in the deep network; its DIN "
        "reads no user. Its attention and auxiliary network were narrowed to the common widths.",
        "FuxiCTR has no layer that evolves an interest, hence no DIEN. RecBole's DIEN weighs "
        "states by a network 64-64-1; torch-rechub's and fullrank's by a bilinear form.",
        "The auxiliary loss is on in every DIEN: by a network 100-50 beside RecBole, by an inner "
        "product beside torch-rechub, which has no other. RecBole reads drawn events that did not "
        "follow from its file, torch-rechub draws them in its preparation, fullrank takes events "
        "of other rows of the batch. torch-rechub has batch norm in the deep network.",
        *(f"{f['name']} ({f['case']}) did not run: {f['failure']}" for f in failures),
    ]
    used = {r["name"] for r in runs} & environments.REQUIREMENTS.keys()
    frozen = {peer: environments.freeze(peer) for peer in sorted(used)}
    record.finish({"runs": runs, "failures": failures, "packages": frozen})


def _row(case: str, group: list[dict[str, Any]], ours: list[dict[str, Any]]) -> dict[str, Any]:
    speeds = [r["speed"] for r in group]
    whole = [] if group[0]["name"] == "bare" else _whole(group)
    return {
        "case": case,
        "contestant": group[0]["peer"],
        "samples per CPU s": median(speeds),
        "lowest to highest": f"{min(speeds):,.0f} to {max(speeds):,.0f}",
        "fullrank is faster by": median(r["speed"] for r in ours) / median(speeds)
        if ours
        else None,
        "samples per s (wall)": median(r["samples"] / r["phases"]["train"]["wall"] for r in group),
        "test AUC": f"{median(r['auc'] for r in group):.4f}",
        "preparation, CPU s": median(r["phases"]["prepare"]["cpu"] for r in whole)
        if whole
        else None,
        "job, CPU s": _job(whole, "cpu") if whole else None,
        "job, wall s": _job(whole, "wall") if whole else None,
        "fullrank's job is shorter by (CPU)": _job(whole, "cpu") / _job(ours, "cpu")
        if ours and whole
        else None,
    }


def _whole(group: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The runs that prepared their data themselves."""
    return [r for r in group if not r["settings"].get("was_prepared")]


def _job(group: list[dict[str, Any]], clock: str) -> float:
    return median(r[clock] for r in group)


def _targets(case: str, groups: dict[str, list[dict[str, Any]]]) -> list[Target]:
    ours, targets = groups["fullrank"], []
    peers = [n for n in groups if n in environments.REQUIREMENTS]
    if peers:
        speed = {name: median(r["speed"] for r in group) for name, group in groups.items()}
        best = max(peers, key=speed.__getitem__)
        ratio = speed["fullrank"] / speed[best]
        targets.append(Target(f"{case}: steady state against the best peer, {best}", ratio, FASTER))
        for clock in ("cpu", "wall"):
            job = {n: _job(_whole(groups[n]), clock) for n in [*peers, "fullrank"]}
            best = min(peers, key=job.__getitem__)
            ratio = job[best] / job["fullrank"]
            what = f"{case}: {clock} time of the whole job against the best peer, {best}"
            targets.append(Target(what, ratio, FASTER))
    if "bare" in groups:
        # Neighbours in time met the same load, so their ratio is steadier than that of medians.
        pairs = zip(ours, groups["bare"], strict=True)
        ratio = median(a["speed"] / b["speed"] for a, b in pairs)
        targets.append(Target(f"{case}: share of the bare step's speed", ratio, OF_BARE))
    return targets


if __name__ == "__main__":
    main()
