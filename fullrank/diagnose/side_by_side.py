"""Side by side: figures that hold several models at once, and each model in a few numbers.

Models differ in width, so what is drawn is a share: of the healthy ceiling, which is the same
measure on Gaussian noise of the same shape, or of what the shape allows.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean

from fullrank.chart import bar_chart, heat_map
from fullrank.diagnose.figures import MOST_COLUMNS, Figure, Section, Shown
from fullrank.diagnose.readings import gate_words, projections
from fullrank.diagnose.records import Findings, Record
from fullrank.diagnose.verdict import gaussian_ceiling, gaussian_tokens, stage_ranks

_Row = dict[str, float]  # column -> value
_FIELDS = ("embed", "left", "right")  # taps whose second axis is fields, not tokens

INSIDE = {
    "end": "rank at the end",
    "weakest": "weakest stage",
    "sample": "rank of one sample's tokens at the end",
    "tables": "tables, mean",
    "weakest_table": "weakest table",
    "projected": "tables after projection, mean",
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
        "A row is a model, a column a field's table, from few rows to many. Where the model sends "
        "tables through matrices, the second map shows what is left of them behind these.",
        [*_table_map(runs), *_projection_map(runs)],
    )
    yield Section(
        "Experts, side by side",
        "A row is a model, a column an expert: how many directions its output uses, as a share of "
        "what Gaussian noise of the same shape has.",
        list(_expert_map(runs)),
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
    abundance over its bound (M1, not centred, rows that training saw), `projected` the same behind
    the matrices towards all partners (M9). The rest are mean absolute correlations.
    """
    newest = findings.latest()
    shares = [stage.share for stage in stage_ranks(newest)]
    samples = list(_samples(newest, centred=False).values())
    projected = list(_projected(newest).values())
    tables = [v for row in _tables(newest) for v in row.values()]
    related = _correlations(newest)
    leaves = {hook: hook.rpartition(".")[2] for hook in related if "expert" not in hook}
    tokens = [related[hook] for hook, leaf in leaves.items() if leaf not in _FIELDS]
    experts = [v for hook, v in related.items() if "expert" in hook]
    return {
        "end": shares[-1] if shares else None,
        "weakest": min(shares, default=None),
        "sample": samples[-1] if samples else None,
        "tables": fmean(tables) if tables else None,
        "weakest_table": min(tables, default=None),
        "projected": fmean(projected) if projected else None,
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
    for centred, words in ((False, "not centred"), (True, "token mean removed")):
        rows = {run.name: _samples(run.newest, centred=centred) for run in runs}
        caption = (
            f"M4, token matrix of one sample, mean over samples, {words}"
            f"{'' if centred else ', as the papers have it'}. Where every token has its own "
            "weights this is nearly full before training."
        )
        yield from _map(rows, f"Tokens of one sample, {words}", caption)


def _rows(runs: Sequence[Shown]) -> str:
    counts = dict.fromkeys(f"{s.n:,}" for run in runs for s in run.stages)
    return ", ".join(counts)


def _samples(findings: Findings, *, centred: bool) -> _Row:
    """Returns stage -> share of noise; T tokens without their mean are noise of T - 1."""
    found = findings.find(metric="erank", accumulator="A4", row_norm="none", centred=centred)
    return {
        r.hook: r.value / gaussian_tokens(r.n - centred, r.d)
        for r in found
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


def _sizes(runs: Sequence[Shown]) -> dict[str, int]:
    """Returns table -> rows, from few to many."""
    sizes: dict[str, int] = {}
    for run in runs:
        for r in run.newest.find(metric="ia", centred=False, row_filter="all"):
            if r.matrix_kind.startswith("table:"):
                sizes[r.hook.rpartition("/")[2]] = r.n
    return dict(sorted(sizes.items(), key=lambda item: item[1]))


def _table_map(runs: Sequence[Shown]) -> Iterable[Figure]:
    rows: dict[str, _Row] = {}
    for run in runs:
        found = _tables(run.newest)
        for i, row in enumerate(found):
            rows[run.name + (f" #{i + 1}" if len(found) > 1 else "")] = row
    columns = {table: f"{table} ({n:,})" for table, n in _sizes(runs).items()}
    named = {name: {columns[t]: v for t, v in row.items()} for name, row in rows.items()}
    caption = (
        "M1, the sum of singular values over the largest, over its bound min(rows, columns). Not "
        "centred, rows that training saw where that is known. In brackets: rows of the table. "
        "#1, #2: sets of embeddings of one model."
    )
    yield from _map(named, "Tables, share of what is attainable", caption, list(columns.values()))


def _projected(findings: Findings) -> _Row:
    """Returns field -> information abundance of its projected table over its bound (M9)."""
    found = projections(findings).items()
    return {field: r.value / r.bound for field, (_, r) in found if r.value is not None}


def _projection_map(runs: Sequence[Shown]) -> Iterable[Figure]:
    sizes, columns = _sizes(runs), {}
    for run in runs:
        for field, (own, _) in projections(run.newest).items():
            columns[field] = f"{field} ({sizes[own.hook]:,})", sizes[own.hook]
    order = sorted(columns, key=lambda field: columns[field][1])
    rows = {
        run.name: {columns[field][0]: v for field, v in _projected(run.newest).items()}
        for run in runs
    }
    caption = (
        "M9, the table times the matrix towards a partner, mean over partners: information "
        "abundance over its bound, not centred, the same rows as above. A square matrix of noise "
        "leaves about half of a full table. Models whose fields meet without matrices are left out."
    )
    yield from _map(rows, "Tables after projection", caption, [columns[f][0] for f in order])


def _expert_map(runs: Sequence[Shown]) -> Iterable[Figure]:
    rows: dict[str, _Row] = {}
    shapes = []
    for run in runs:
        found = [
            r for r in run.newest.find(metric="erank", centred=True, row_norm="none")
            if r.matrix_kind.startswith("expert_out:") and r.value is not None and r.bound > 1
        ]  # fmt: skip
        many = len({r.hook for r in found}) > 1
        for r in found:
            name = f"{run.name} {r.hook.removesuffix('.experts')}" if many else run.name
            expert = f"expert {r.matrix_kind.partition(':')[2]}"
            share = (r.value or 0.0) / gaussian_ceiling(r.n, int(r.bound))
            rows.setdefault(name, {})[expert] = share
        shapes += [f"{run.name} {found[0].n:,} x {found[0].d}"] if found else []
    gates = gate_words({run.name: run.newest for run in runs})
    caption = f"M7, centred. {'; '.join(shapes)}.{gates}"
    yield from _map(rows, "Effective rank of every expert", caption)


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
    parts = [columns[i : i + MOST_COLUMNS] for i in range(0, len(columns), MOST_COLUMNS)]
    for i, part in enumerate(parts):
        shown = {name: row for name, row in rows.items() if row.keys() & {*part}}
        values = [[row.get(column) for column in part] for row in shown.values()]
        counted = f" ({i + 1} of {len(parts)})" if len(parts) > 1 else ""
        svg = heat_map(values, title=title + counted, rows=list(shown), columns=part, limit=1.0)
        yield Figure(svg, caption)
