"""Figures: charts of findings, each with a caption that says what was measured.

Models are drawn into one figure only where matrix, centring and shape are stated for each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from fullrank.chart import Series, density_chart, heat_map, line_chart, scatter_chart
from fullrank.diagnose.readings import gate_words, projections
from fullrank.diagnose.records import Findings, Record, kept_indices
from fullrank.diagnose.verdict import (
    Stage,
    Verdict,
    gaussian_ceiling,
    gaussian_tokens,
    stage_ranks,
)

MOST_NAMES = 48  # rows of a map beyond which it is not drawn
MOST_COLUMNS = 24  # of one map whose columns are tables or stages
_RATIO = "σ / σ₁"  # noqa: RUF001


@dataclass(frozen=True)
class Figure:
    """A chart with the sentence that says what was measured."""

    svg: str
    caption: str


@dataclass(frozen=True)
class Section:
    """A heading, what the reader should see, and its figures."""

    heading: str
    text: str
    figures: list[Figure]


@dataclass(frozen=True)
class Shown:
    """One run as the page shows it: the newest pass, and all passes over training time."""

    name: str
    newest: Findings
    all: Findings
    verdicts: list[Verdict]
    stages: list[Stage]


def sections(runs: Sequence[Shown]) -> Iterable[Section]:  # length: the order of the page
    """Yields the sections of the page; one without figures has nothing to show."""
    yield Section(
        "Effective rank through the model",
        "How many directions each stage uses, over the batch, with the mean removed. The dashed "
        "line is the most that the stage allows; Gaussian noise of the same shape lies just under "
        "it. A fall is a layer that throws directions away.",
        [_stages(run) for run in runs if run.stages],
    )
    yield Section(
        "Effective rank of one sample's tokens",
        "The same for the token matrix of every single sample, averaged: not centred, as the "
        "papers have it, and with the token mean of each sample removed. Where every token has "
        "its own weights this is nearly full before training; read it with the figures above.",
        [f for run in runs for f in _samples(run)],
    )
    yield Section(
        "Spectra",
        "Singular values over the largest, from streaming QR in float64. What lies under its floor "
        "is drawn as such.",
        list(_spectra(runs)),
    )
    yield Section(
        "Embedding tables",
        "Information abundance of every table against its rows. Tables whose partners have few "
        "values are pulled down by them.",
        [f for f in (_tables(runs, "seen"), _tables(runs, "all"), _tables(runs, "freq")) if f],
    )
    yield Section(
        "Embedding tables after their projection",
        "A row is a field, from few rows to many, a column the partner that meets it through a "
        "matrix. A row that is faint from its first cell on is a table that has collapsed by "
        "itself; one that fades behind it loses its directions on the way to its partners. A "
        "square matrix of noise alone takes about half: the caption says how much.",
        [f for run in runs for f in _projected(run)],
    )
    yield Section(
        "Effective rank of every field, token and expert",
        "Each stage is a row, each field, token or expert a column. A faint column is a token that "
        "has collapsed across samples.",
        [f for run in runs for f in _per_token(run)],
    )
    yield Section(
        "Redundancy and correlation",
        "Mean absolute correlation between the units of two fields, tokens or experts.",
        [f for run in runs for f in _maps(run)],
    )
    yield Section(
        "Mutual information between tokens",
        "In nats: k-means on one half of the rows, counts on the other, corrected for bias.",
        [f for run in runs for f in _information(run)],
    )
    yield Section(
        "Over training time", "The same measures at every checkpoint.", list(_over_time(runs))
    )


def _stages(run: Shown) -> Figure:
    names = [s.name for s in run.stages]
    at = list(range(len(names)))
    whole = {s.name: s.erank for s in stage_ranks(run.newest, centred=False)}
    curves = [
        Series("measured", at, [s.erank for s in run.stages], marks=True),
        Series("healthy ceiling", at, [s.ceiling for s in run.stages], marks=True),
        Series("not centred", at, [whole.get(name) for name in names], marks=True),
        Series("attainable bound", at, [s.bound for s in run.stages], dashed=True),
    ]
    svg = line_chart(
        curves,
        title=run.name,
        x="stage",
        y="effective rank",
        x_names=names,
        log_y=_wide(run),
    )
    return Figure(
        svg,
        "Effective rank of B x D matrices: M2 and M5 averaged over fields or tokens, M3 and M8 "
        f"for flat stages. Centred unless said otherwise, n = {run.stages[0].n:,} rows.",
    )


def _wide(run: Shown) -> bool:
    """A log axis where stages differ in width by more than a factor of twenty."""
    bounds = [s.bound for s in run.stages]
    return max(bounds) > 20 * min(bounds)


def _samples(run: Shown) -> Iterable[Figure]:
    found = [
        r for r in run.newest.find(metric="erank", accumulator="A4", row_norm="none")
        if not r.hook.endswith("_branch")
    ]  # fmt: skip
    centred = {r.hook: r for r in found if r.centred}
    found = [r for r in found if not r.centred]
    if len(found) > 1:
        at, without = list(range(len(found))), [centred.get(r.hook) for r in found]
        curves = [
            Series("mean over samples", at, [r.value for r in found], marks=True),
            Series("Gaussian T x D", at, [gaussian_tokens(r.n, r.d) for r in found], marks=True),
            Series("token mean removed", at, [r.value if r else None for r in without], marks=True),
            Series("attainable min(T, D)", at, [r.bound for r in found], dashed=True),
            Series("min(T - 1, D)", at, [r.bound if r else None for r in without], dashed=True),
        ]
        svg = line_chart(
            curves, title=run.name, x="stage", y="effective rank", x_names=[r.hook for r in found]
        )
        words = "M4, token matrix of one sample, not centred and with its token mean removed. "
        yield Figure(svg, words + _shapes(found))
    chosen = {r.hook: r for r in (found[:1] + found[-1:]) if r.bound > 1}
    if chosen:
        curves_ = {f"{hook} ({r.n} x {r.d})": _histogram(run, r) for hook, r in chosen.items()}
        svg = density_chart(curves_, title=f"{run.name}: over samples", x="effective rank")
        yield Figure(svg, "M4, density over samples of the effective rank, not centred.")


def _histogram(run: Shown, record: Record) -> tuple[list[float], list[float]]:
    """Returns edges and counts, 256 stored bins joined four by four, empty ends cut."""
    counts = run.newest.arrays[record.array].reshape(-1, 4).sum(1)
    width = (record.bound - 1) / len(counts)
    held = counts.nonzero().flatten()
    first, last = max(0, int(held[0]) - 1), min(len(counts), int(held[-1]) + 2)
    edges = [1 + width * i for i in range(first, last + 1)]
    return edges, counts[first:last].tolist()


def _spectra(runs: Sequence[Shown]) -> Iterable[Figure]:
    wanted: list[tuple[str, str, Callable[[Record], bool]]] = [
        ("Input of the head", "M8", lambda r: r.matrix_kind == "head_in"),
        ("All field embeddings, flattened", "M3", lambda r: r.matrix_kind == "batch_flat:embed"),
        ("Sequence tokens", "M6", lambda r: r.matrix_kind.startswith("seq_tokens")),
    ]
    for title, matrix, is_wanted in wanted:
        curves, shapes, floor = [], [], 0.0
        for run in runs:
            for r in run.newest.find(metric="log_spectrum", centred=True, row_norm="none"):
                if is_wanted(r):
                    s = run.newest.arrays[r.array]
                    index = (kept_indices(r.d)[: len(s)] + 1).tolist()
                    curves.append(Series(run.name, index, s.double().exp().tolist()))
                    shapes.append(f"{run.name} {r.n:,} x {r.d}")
                    floor = r.floor
        if curves:
            svg = line_chart(
                curves, title=title, x="index", y=_RATIO, log_y=True, floor=floor * 1.001
            )
            note = " Published covariance spectra show the square of these values." * (
                matrix == "M3"
            )
            yield Figure(svg, f"{matrix}, centred. {'; '.join(shapes)}.{note}")


def _tables(runs: Sequence[Shown], row_filter: str) -> Figure | None:
    clouds = []
    for run in runs:
        found = [
            r for r in run.newest.find(metric="ia", centred=False, row_filter=row_filter)
            if r.matrix_kind.startswith("table:") and r.value
        ]  # fmt: skip
        if row_filter == "freq":  # n counts occurrences: show the rows of the table instead
            sizes = {r.hook: r.n for r in run.newest.find(metric="ia", row_filter="all")}
            across = [float(sizes.get(r.hook, r.n)) for r in found]
        else:
            across = [float(r.n) for r in found]
        if found:
            names = [r.hook.rpartition("/")[2] for r in found]  # whichever set it is in
            clouds.append(Series(run.name, across, [r.value for r in found], labels=names))
    if not clouds:
        return None
    words = {
        "all": "All rows but the unknown one; rows that training never saw keep their random start "
        "and can hide collapse.",
        "seen": "Rows with at least one training occurrence.",
        "freq": "Rows weighted by the root of their count: the spectrum of the embedded data set.",
    }
    svg = scatter_chart(
        clouds, title=f"Tables, {row_filter} rows", x="rows", y="information abundance", log_x=True
    )
    return Figure(
        svg, f"M1, the sum of singular values over the largest, not centred. {words[row_filter]}"
    )


def _projected(run: Shown) -> Iterable[Figure]:
    found, values = projections(run.newest), run.newest.array(metric="ia_map")
    if values is None or not found:
        return
    (record,) = run.newest.find(metric="ia_map")[-1:]
    names = run.newest.labels[record.array]
    rows = list(found)[-MOST_COLUMNS:]
    # Numbers and vectors have no table; as partners they stand before the smallest.
    partners = ([n for n in names if n not in found] + list(found))[-MOST_COLUMNS:]
    shares = [
        [own.value / own.bound if own.value else None]
        + [float(values[names.index(name), names.index(p)]) / r.bound for p in partners]
        for name, (own, r) in found.items()
        if name in rows
    ]
    svg = heat_map(
        shares, title=f"{run.name}: share of what is attainable", rows=rows,
        columns=["table itself", *partners], x="partner", limit=1.0,
    )  # fmt: skip
    d, row_filter = record.d, next(iter(found.values()))[0].row_filter
    caption = (
        "M1 in the first column, then M9, the table times the matrix towards each partner: "
        f"information abundance over min(rows, {d}), not centred, {row_filter} rows. A Gaussian "
        f"{d} x {d} matrix leaves {gaussian_ceiling(d, d, 'ia') / d:.2f} of a full table."
    )
    if len(names) > MOST_COLUMNS:
        caption += f" The {MOST_COLUMNS} largest of {len(names)} fields."
    yield Figure(svg, caption)


def _per_token(run: Shown) -> Iterable[Figure]:
    stages: dict[str, dict[str, Record]] = {}
    for r in run.newest.find(metric="erank", centred=True, accumulator="A2", row_norm="none"):
        name = r.matrix_kind.rpartition(":")[2]
        if r.matrix_kind.startswith(("batch_field:", "token_batch:", "expert_out:")):
            stages.setdefault(r.hook, {})[name] = r
    groups: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for hook, found in stages.items():
        if len(found) <= MOST_NAMES:
            kind = next(iter(found.values())).matrix_kind.partition(":")[0]
            groups.setdefault((_COLUMNS[kind], tuple(found)), []).append(hook)
    for (column, names), hooks in groups.items():
        if len(hooks) > 12:  # a deep model: the branches would double the height of the figure
            hooks = [h for h in hooks if not h.endswith("_branch")]
        values = [[_share(stages[h][n]) for n in names] for h in hooks]
        svg = heat_map(
            values, title=f"{run.name}: share of what is attainable", rows=hooks, columns=names,
            x=column.partition(" ")[2], limit=1.0,
        )  # fmt: skip
        r = next(iter(stages[hooks[0]].values()))
        caption = f"Effective rank of B x {r.d} over its attainable rank. Centred, n = {r.n:,}."
        gates = gate_words({"": run.newest}) if column.endswith("expert") else ""
        yield Figure(svg, f"{column.partition(' ')[0]}. {caption}{gates}")


def _share(r: Record) -> float | None:
    return None if r.value is None else r.value / max(1.0, r.bound)


def _maps(run: Shown) -> Iterable[Figure]:
    found = run.newest.find(metric="red_map") + run.newest.find(metric="correlation_map")
    shown = [r for r in found if not r.hook.endswith("_branch")]
    tokens = [r for r in shown if r.matrix_kind.startswith("correlation:")]
    keep = {r.hook for r in tokens[:1] + tokens[-1:]} | {
        r.hook for r in shown if "expert" in r.hook
    }
    for r in shown:
        redundant = r.matrix_kind.startswith("redundancy")
        if not redundant and (r.hook not in keep or r.hook == "embed"):
            continue
        title = r.matrix_kind.replace("redundancy:", "redundancy, ").replace(":", " of ")
        scalars = {
            m: run.newest.value(matrix_kind=r.matrix_kind, metric=m)
            for m in ("red_diag", "red_off", "cec", "cka", "dead", "correlation_mean")
        }
        text = ", ".join(f"{_NAME[m]} {v:.3f}" for m, v in scalars.items() if v is not None)
        figure = _map(run, r, f"{run.name}: {title}", 1.0)
        chance = math.sqrt(2 / (math.pi * max(1, r.n)))
        if figure:
            caption = (
                f"Pearson over n = {r.n:,} samples; independent units give {chance:.3f}; {text}."
            )
            sampled = f" {r.approx.partition(':')[2]} units of each." if r.approx else ""
            yield Figure(figure, caption + sampled)


def _map(run: Shown, r: Record, title: str, limit: float | None) -> str | None:
    values: Tensor = run.newest.arrays[r.array]
    names = run.newest.labels.get(r.array) or [str(i) for i in range(len(values))]
    if len(names) > MOST_NAMES:
        return None
    return heat_map(values.tolist(), title=title, rows=names, columns=names, limit=limit)


def _information(run: Shown) -> Iterable[Figure]:
    for r in run.newest.find(metric="mi_corrected_map"):
        figure = _map(run, r, f"{run.name}: {r.hook}", None)
        value = {
            m: run.newest.value(matrix_kind=r.matrix_kind, metric=f"mi_{m}") or 0.0
            for m in ("plug_in", "corrected", "shuffled")
        }
        if figure:
            yield Figure(
                figure,
                f"{r.matrix_kind.rpartition(':k')[2]} clusters per token, n = {r.n:,} rows. Mean "
                f"{value['corrected']:.4f} corrected, {value['plug_in']:.4f} plug-in, "
                f"{value['shuffled']:.4f} after shuffling. 3 seeds.",
            )


def _over_time(runs: Sequence[Shown]) -> Iterable[Figure]:
    for run in runs:
        curves: dict[str, dict[float, float]] = {}
        for r in run.all.find(metric="erank", row_norm="none"):
            monitored = r.matrix_kind.startswith("monitor:")
            shown = monitored or r.matrix_kind in ("head_in", "batch_flat:embed")
            if shown and r.centred and r.value is not None:
                name = r.hook + (f" (n = {r.n})" if monitored else "")
                curves.setdefault(name, {})[r.epoch] = r.value
        long = {name: c for name, c in curves.items() if len(c) > 1}
        if long:
            series = [
                Series(n, sorted(c), [c[e] for e in sorted(c)], marks=True) for n, c in long.items()
            ]
            svg = line_chart(
                series, title=run.name, x="epoch", y="effective rank, centred", log_y=True
            )
            yield Figure(
                svg, "Centred. Values of one line share n; lines with different n do not compare."
            )


def _shapes(records: Sequence[Record]) -> str:
    return "T x D: " + ", ".join(dict.fromkeys(f"{r.n} x {r.d}" for r in records)) + "."


_COLUMNS = {"batch_field": "M2 field", "token_batch": "M5 token", "expert_out": "M7 expert"}
_NAME = {
    "red_diag": "within a field",
    "red_off": "between fields",
    "cec": "cross-expert correlation",
    "cka": "linear CKA",
    "dead": "dead units",
    "correlation_mean": "mean",
}
