"""Side by side: figures that hold several models at once, and each model in a few numbers.

Models differ in width, so what is drawn is a share: of the healthy ceiling, which is the same
measure on Gaussian noise of the same shape, or of what the shape allows.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean

from fullrank.chart import bar_chart, heat_map
from fullrank.diagnose.figures import Figure, Section, Shown
from fullrank.diagnose.records import Findings, Record
from fullrank.diagnose.verdict import gaussian_tokens, stage_ranks

_Row = dict[str, float]  # column -> value
_FIELDS = ("embed", "left", "right")  # taps whose second axis is fields, not tokens
_MOST_COLUMNS = 24  # of one map

INSIDE = {
    "end": "rank at the end",
    "weakest": "weakest stage",
    "sample": "rank of one sample's tokens at the end",
    "tables": "tables, mean",
    "weakest_table": "weakest table",
    "correlation": "correlation of tokens at the end",
    "experts": "correlation of experts",
    "redundancy": "redundancy between fields",
}
"""What `inside` measures, in a few words."""


def side_by_side(runs: Sequence[Shown]) -> Iterable[Section]:
    """Yields sections whose figures show all models at once; nothing for a single one."""
    if len(runs) < 2:
        return
    yield Section(
        "Effective rank per layer, side by side",
        "A row is a model, a column a stage, in the order in which rows of data pass them. The "
        "value is the share of what Gaussian noise of the same shape has: 1 uses every direction "
        "that the stage offers.",
        list(_stage_maps(runs)),
    )
    yield Section(
        "Information abundance of every table, side by side",
        "A row is a model, a column a field's table, from few rows to many.",
        list(_table_map(runs)),
    )
    yield Section(
        "Correlation and redundancy, side by side",
        "Mean absolute correlation between the units of different fields, tokens or experts: at 0 "
        "they say different things, at 1 the same.",
        [*_correlation_map(runs), *_redundancy_bars(runs)],
    )


def inside(findings: Findings) -> dict[str, float | None]:
    """Returns a model in a few numbers, by the names of `INSIDE`; None where it has no such part.

    Ranks are shares of the healthy ceiling of their shape: `end`, `weakest` centred over the batch
    (M2, M3, M5, M8), `sample` of the tokens of one sample (M4, not centred). Tables are information
    abundance over its bound (M1, not centred, rows that training saw). The rest are mean absolute
    correlations.
    """
    newest = findings.latest()
    shares = [stage.share for stage in stage_ranks(newest)]
    samples = list(_samples(newest).values())
    tables = [v for row in _tables(newest) for v in row.values()]
    related = _correlations(newest)
    tokens = [v for hook, v in related.items() if "expert" not in hook and hook not in _FIELDS]
    experts = [v for hook, v in related.items() if "expert" in hook]
    return {
        "end": shares[-1] if shares else None,
        "weakest": min(shares, default=None),
        "sample": samples[-1] if samples else None,
        "tables": fmean(tables) if tables else None,
        "weakest_table": min(tables, default=None),
        "correlation": tokens[-1] if tokens else None,
        "experts": fmean(experts) if experts else None,
        "redundancy": newest.value(metric="red_off"),
    }


def merged(orders: Iterable[Sequence[str]]) -> list[str]:
    """Returns all names in one order that agrees with the given ones as far as these agree.

    Of names that nothing orders, the lower number goes first, as in "block1.ffn" and "block2.mix",
    then the one that comes earlier in its own list.
    """
    lists = [list(order) for order in orders]
    place: dict[str, list[float]] = {}
    for order in lists:
        for i, name in enumerate(order):
            place.setdefault(name, []).append(i / len(order))
    left, out = {name: (_number(name), fmean(at), name) for name, at in place.items()}, []
    while left:
        heads = {next((n for n in order if n in left), "") for order in lists}
        behind = {n for order in lists for n in [n for n in order if n in left][1:]}
        name = min((heads - behind) & left.keys() or left, key=lambda n: left[n])
        out.append(name)
        del left[name]
    return out


def _number(name: str) -> int:
    found = re.search(r"\d+", name)
    return int(found[0]) if found else -1


def _stage_maps(runs: Sequence[Shown]) -> Iterable[Figure]:
    for centred in (True, False):
        rows = {
            run.name: {s.name: s.share for s in stage_ranks(run.newest, centred=centred)}
            for run in runs
        }
        words = "centred" if centred else "not centred"
        caption = (
            f"B x D matrices, {words}: M2 and M5 averaged over fields or tokens, M3 and M8 for "
            f"flat stages. n = {_rows(runs)}."
        )
        if not centred:
            caption += " Where the mean is far from zero, this mostly measures the mean."
        yield from _map(rows, f"Over the batch, {words}", caption)
    rows = {run.name: _samples(run.newest) for run in runs}
    caption = (
        "M4, token matrix of one sample, mean over samples, not centred, as the papers have it. "
        "Where every token has its own weights this is nearly full before training."
    )
    yield from _map(rows, "Tokens of one sample, not centred", caption)


def _rows(runs: Sequence[Shown]) -> str:
    counts = dict.fromkeys(f"{s.n:,}" for run in runs for s in run.stages)
    return ", ".join(counts)


def _samples(findings: Findings) -> _Row:
    return {
        r.hook: r.value / gaussian_tokens(r.n, r.d)
        for r in findings.find(metric="erank", accumulator="A4", row_norm="none")
        if not r.hook.endswith("_branch") and r.value is not None and r.bound > 1
    }


def _tables(findings: Findings) -> list[_Row]:
    """Returns table -> information abundance over its bound, for each set of embeddings."""
    sets: dict[str, dict[str, Record]] = {}
    for row_filter in ("all", "seen"):  # rows that training saw replace all rows, where known
        for r in findings.find(metric="ia", centred=False, row_filter=row_filter):
            if r.matrix_kind.startswith("table:"):
                prefix, _, table = r.hook.rpartition("/")
                sets.setdefault(prefix, {})[table] = r
    rows = [
        {table: r.value / r.bound for table, r in found.items() if r.value and r.bound > 1}
        for found in sets.values()
    ]
    return [row for row in rows if row]  # weights of one column have one direction whatever they do


def _table_map(runs: Sequence[Shown]) -> Iterable[Figure]:
    sizes: dict[str, int] = {}
    rows: dict[str, _Row] = {}
    for run in runs:
        for r in run.newest.find(metric="ia", centred=False, row_filter="all"):
            if r.matrix_kind.startswith("table:"):
                sizes[r.hook.rpartition("/")[2]] = r.n
        found = _tables(run.newest)
        for i, row in enumerate(found):
            rows[run.name + (f" #{i + 1}" if len(found) > 1 else "")] = row
    columns = {t: f"{t} ({sizes[t]:,})" for t in sorted(sizes, key=lambda t: sizes[t])}
    named = {name: {columns[t]: v for t, v in row.items()} for name, row in rows.items()}
    caption = (
        "M1, the sum of singular values over the largest, over its bound min(rows, columns). Not "
        "centred, rows that training saw where that is known. In brackets: rows of the table. "
        "#1, #2: sets of embeddings of one model."
    )
    yield from _map(named, "Tables, share of what is attainable", caption, list(columns.values()))


def _correlations(findings: Findings) -> _Row:
    return {
        r.hook: r.value
        for r in findings.find(metric="correlation_mean")
        if not r.hook.endswith("_branch") and r.value is not None
    }


def _correlation_map(runs: Sequence[Shown]) -> Iterable[Figure]:
    caption = (
        "Pearson over samples, between the units of different fields (embed), tokens or experts "
        "of a stage; mean of the magnitudes."
    )
    rows = {run.name: _correlations(run.newest) for run in runs}
    yield from _map(rows, "Correlation within a stage", caption)


def _redundancy_bars(runs: Sequence[Shown]) -> Iterable[Figure]:
    kinds = {
        "redundancy:left x right": "the operands of the first interaction",
        "redundancy:embed x embed": "the embeddings with themselves",
    }
    for kind, operands in kinds.items():
        having = [run for run in runs if run.newest.find(matrix_kind=kind, metric="red_off")]
        values = {
            words: [run.newest.value(matrix_kind=kind, metric=metric) for run in having]
            for metric, words in (("red_diag", "within a field"), ("red_off", "between fields"))
        }
        if having:
            svg = bar_chart(
                [run.name for run in having],
                values,
                title=f"Redundancy of {operands}",
                x="",
                y="mean |Pearson|",
            )
            yield Figure(svg, "Lower is better: one field then says little of what another says.")


def _map(
    rows: Mapping[str, _Row], title: str, caption: str, columns: Sequence[str] = ()
) -> Iterable[Figure]:
    """Yields maps of models by stages or tables, each narrow enough to be read."""
    columns = columns or merged(list(row) for row in rows.values())
    parts = [columns[i : i + _MOST_COLUMNS] for i in range(0, len(columns), _MOST_COLUMNS)]
    for i, part in enumerate(parts):
        shown = {name: row for name, row in rows.items() if row.keys() & {*part}}
        values = [[row.get(column) for column in part] for row in shown.values()]
        counted = f" ({i + 1} of {len(parts)})" if len(parts) > 1 else ""
        svg = heat_map(values, title=title + counted, rows=list(shown), columns=part, limit=1.0)
        yield Figure(svg, caption)
