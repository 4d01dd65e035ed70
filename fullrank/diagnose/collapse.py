"""Collapse: one pass over a model that measures every matrix of the diagnostics contract.

    findings = diagnose(model, batches, context=RunContext(run_id="demo", variant="dcnv2"))
    for verdict in judge(findings): print(verdict)

M1 and M9 read the embedding tables; M2 to M8 come from the taps while the fixed subset is scored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from fullrank.batch import Batch
from fullrank.config import require, require_positive
from fullrank.diagnose.accumulate import StreamingQR
from fullrank.diagnose.information import (
    auc,
    clusters_for,
    label_information,
    probe_auc,
    separation,
    token_information,
)
from fullrank.diagnose.periodicity import record_periodicity
from fullrank.diagnose.probe import Subset, measuring, plain, take_subset, watch
from fullrank.diagnose.recorder import Place, Recorder, Spectrum
from fullrank.diagnose.records import Findings, RunContext
from fullrank.diagnose.redundancy import off_diagonal_mean
from fullrank.diagnose.sequences import record_attention
from fullrank.diagnose.stages import Stages
from fullrank.embedding import Embeddings
from fullrank.errors import MetricUndefinedError
from fullrank.ops import spectrum
from fullrank.schema import Bag, Categorical, Numeric, Schema
from fullrank.target import TargetHistory

TABLE_CHUNK = 65_536  # rows of a table per update
PROJECTED = ("ia", "erank", "stable_rank")  # what is measured of a table after its projection
EVENTS_AT_ONCE = 131_072  # of all rows that are scored together
WIDEST_PAIRS = 64  # tokens beyond which pairwise mutual information is left out


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a diagnostic pass measures.

    Args:
        rows: of the fixed subset; 8,192 at CPU scale, 50,000 where time allows. Matrices with d
            columns want at least 20 d rows.
        seed: of the subset.
        chunk: rows scored at once.
        row_norms: "none" measures rows as they are, "l2" their directions alone.
        information: also the mutual information and the logistic probe, the slowest part.

    Raises:
        ConfigError: a value is impossible.
    """

    rows: int = 8192
    seed: int = 0
    chunk: int = 2048
    row_norms: tuple[Literal["none", "l2"], ...] = ("none",)
    information: bool = True

    def __post_init__(self) -> None:
        require_positive(self, "rows", "chunk")
        require(
            len(self.row_norms) > 0,
            where="Options.row_norms",
            found=self.row_norms,
            expected="at least one of 'none' and 'l2'",
            fix="keep 'none'",
        )


def diagnose(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    context: RunContext,
    counts: Mapping[str, Tensor] | None = None,
    options: Options | None = None,
) -> Findings:
    """Measures a model and changes nothing in it, nor in any random state.

    Args:
        model: has `score`; taps, `embeddings` and `pair_projection(i, j) -> Tensor | None` are
            read where they exist.
        batches: validation rows in a fixed order; a subset of them is drawn.
        context: what the records say about the run.
        counts: table -> training occurrences of each row [V]; with them the rows that training
            never saw are told apart, which otherwise hide collapse.
        options: what to measure.

    Returns:
        Records and arrays; see `Findings`.

    Raises:
        EmptyInputError: `batches` holds no rows.
    """
    options = options or Options()
    subset = take_subset(batches, options.rows, options.seed)
    model = plain(model)
    out = Recorder(context, subset.hash)
    tables = _embeddings(model)
    schema = next(iter(tables.values())).schema if tables else Schema()
    fields = [f.name for f in schema.fields]
    stages = Stages(
        out,
        fields,
        field_ranks(schema, subset.batch),
        options.row_norms,
        keep=("head_in", "tokens", "embed"),
    )
    chunk = _chunk(model, options.chunk)
    scores = _score(model, subset, stages, chunk)
    with measuring(model):
        for label, score in scores.items():
            _record_scores(out, label, score, subset.batch)
        for prefix, table in tables.items():
            _record_tables(out, prefix, table, counts or {})
        _record_projections(out, model, tables, counts or {})
        stages.report()
        record_attention(out, model, subset.batch)
        record_periodicity(out, model, subset.batch)
        if options.information:
            _record_information(out, stages, scores, subset.batch)
    return out.findings


def field_ranks(schema: Schema, batch: Batch) -> dict[str, tuple[float, float]]:
    """Returns the (uncentred, centred) rank that the values of each field allow at most.

    A categorical field with v distinct values in the rows spans v directions, v - 1 centred; a
    number x embedded as x w + b spans two, one centred.
    """
    ranks: dict[str, tuple[float, float]] = {}
    for f in schema.fields:
        if isinstance(f, Categorical) and f.name in batch.categorical:
            values = float(len(torch.unique(batch.categorical[f.name])))
            ranks[f.name] = values, max(1.0, values - 1)
        elif isinstance(f, Bag):
            values = float(schema.table(f.table).size)
            ranks[f.name] = values, values
        elif isinstance(f, Numeric):
            ranks[f.name] = 2.0, 1.0
        else:
            ranks[f.name] = float("inf"), float("inf")
    return ranks


def table_factor(weight: Tensor, keep: Tensor | None = None) -> tuple[StreamingQR, int]:
    """Streams the rows of a table, row 0 (unknown) left out.

    Args:
        weight: [V, d].
        keep: [V] bool, or [V] float factors that scale rows; None keeps all.

    Returns:
        The accumulator and the number of rows it saw. The matrix itself is never copied whole.
    """
    seen = StreamingQR(weight.shape[1])
    for start in range(1, len(weight), TABLE_CHUNK):
        rows = weight[start : start + TABLE_CHUNK].detach().double()
        if keep is not None:
            part = keep[start : start + TABLE_CHUNK]
            rows = rows[part] if part.dtype == torch.bool else rows * part.double()[:, None]
        seen.update(rows)
    return seen, seen.n


def _embeddings(model: nn.Module) -> dict[str, Embeddings]:
    """Returns prefix -> Embeddings; the main one, `embeddings`, has none."""
    found = {n: m for n, m in model.named_modules() if isinstance(m, Embeddings)}
    main = next((n for n in found if n.rpartition(".")[2] == "embeddings"), next(iter(found), ""))
    return {"" if n == main else f"{n}/": m for n, m in found.items()}


def _chunk(model: nn.Module, most: int) -> int:
    """Returns how many rows to score at once: fewer where they carry long histories."""
    history = getattr(model, "history", None)
    if not isinstance(history, TargetHistory):
        return most
    return min(most, max(1, EVENTS_AT_ONCE // history.length))


def _score(model: nn.Module, subset: Subset, stages: Stages, chunk: int) -> dict[str, Tensor]:
    parts: dict[str, list[Tensor]] = {}
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    with watch(model, stages) as seen:
        for batch in subset.parts(chunk):
            for label, score in seen.score(batch.to(device)).items():
                parts.setdefault(label, []).append(score.detach().cpu().double())
    return {label: torch.cat(part) for label, part in parts.items()}


def _record_scores(out: Recorder, label: str, score: Tensor, batch: Batch) -> None:
    """Spread of the scores, and how well they rank; the complaint that users bring."""
    place = Place(hook="score", kind=f"score:{label}", n=len(score), d=1, bounds=(1.0, 1.0))
    _, counts = torch.unique(score, return_counts=True)
    out.add(place, "score_std", float(score.std(correction=0)))
    out.add(place, "score_mean", float(score.mean()))
    out.add(place, "distinct_share", len(counts) / len(score))
    out.add(place, "top_score_share", int(counts.max()) / len(score))
    known = batch.observed[label].bool()
    score, target = score[known], batch.labels[label][known].double()
    if not len(score):
        return
    place = replace(place, n=len(score))
    loss = nn.functional.binary_cross_entropy_with_logits(score, target)
    out.add(place, "logloss", float(loss))
    out.add(place, "positive_rate", float(target.mean()))
    try:
        out.add(place, "auc", auc(score, target))
    except MetricUndefinedError:
        out.add(place, "auc", None)


def _record_tables(
    out: Recorder, prefix: str, embeddings: Embeddings, counts: Mapping[str, Tensor]
) -> None:
    """M1: every table, over all its rows, those that training saw, and the embedded data set."""
    for table in embeddings.schema.tables:
        if table.size < 2:  # the unknown row alone
            continue
        weight = embeddings.weight(table.name)
        filters: dict[str, Tensor | None] = {"all": None}
        if table.name in counts:
            count = counts[table.name][: table.size].cpu()
            filters |= {"seen": count > 0, "freq": count.double().sqrt()}
        for name, keep in filters.items():
            _record_table(out, prefix + table.name, weight, name, keep)


def _record_table(
    out: Recorder, name: str, weight: Tensor, row_filter: str, keep: Tensor | None
) -> None:
    rows, n = table_factor(weight, keep)
    if n == 0:
        return
    distinct = n
    if row_filter == "freq":
        assert keep is not None
        n, distinct = int(keep[1:].square().sum().round()), int((keep[1:] > 0).sum())
        if n == 0:
            return
    d = weight.shape[1]
    bounds = (float(min(distinct, d)), float(min(max(1, distinct - 1), d)))
    place = Place(hook=name, kind=f"table:{name}", n=n, d=d, bounds=bounds, row_filter=row_filter)
    whole = Spectrum(d, tail=True)
    whole.rows = rows
    if row_filter == "freq":  # scaled rows have no mean to remove
        s = rows.singular_values(center=False)
        out.spectrum(place, s, centred=False, accumulator="A3", floor=rows.floor)
    else:
        out.both(place, whole)


def _record_projections(
    out: Recorder, model: nn.Module, tables: Mapping[str, Embeddings], counts: Mapping[str, Tensor]
) -> None:
    """M9: the table of field i as field j sees it, E_i W_{i->j}, from the factor R_i alone.

    One map [F, F] per measure, NaN where i does not meet j through a matrix, and the mean over
    partners per field: a record for each of 1,560 pairs of 40 fields would outweigh all others.
    """
    project: Callable[[int, int], Tensor | None] | None = getattr(model, "pair_projection", None)
    if project is None or not tables:
        return
    embeddings, schema = tables[""], tables[""].schema
    fields = [f.name for f in schema.fields]
    maps = torch.full((len(PROJECTED), len(fields), len(fields)), torch.nan)
    for i, field in enumerate(fields):
        table = embeddings.table_of(field)
        through = {j: project(i, j) for j in range(len(fields)) if j != i}
        seen = {j: w.detach().cpu().double() for j, w in through.items() if w is not None}
        if table is None or schema.table(table).size < 2 or not seen:
            continue
        weight = embeddings.weight(table)
        keep = counts[table][: len(weight)].cpu() > 0 if table in counts else None
        rows, n = table_factor(weight, keep)
        if n == 0:
            continue
        ws = torch.stack(list(seen.values()))  # [J, D, D]
        s = torch.linalg.svdvals(rows.factor(center=False) @ ws)  # [J, D]
        bound, row_filter = float(min(n, *ws.shape[1:])), "all" if keep is None else "seen"
        place = Place(
            hook=table, kind=f"sub_emb:{field}->*", n=n, d=ws.shape[2], bounds=(bound, bound),
            row_filter=row_filter,
        )  # fmt: skip
        for m, metric in enumerate(PROJECTED):
            values = spectrum.SCALARS[metric](s)
            maps[m, i, list(seen)] = values.float()
            out.add(place, metric, float(values.mean()), accumulator="A3", floor=rows.floor)
    if not maps.isnan().all():
        place = Place(hook="embeddings", kind="sub_emb", n=0, d=embeddings.dim, bounds=(1.0, 1.0))
        for metric, values in zip(PROJECTED, maps, strict=True):
            out.add(place, f"{metric}_map", None, accumulator="A3", array=values, labels=fields)


def _record_information(
    out: Recorder, stages: Stages, scores: Mapping[str, Tensor], batch: Batch
) -> None:
    """Sections 6.3 to 6.6: what tokens say about one another, and the head about the label."""
    hook = "tokens" if "tokens" in stages.kept else "embed"
    if hook in stages.kept and stages.axes[hook] in ("B N D", "B F D"):
        x = torch.cat(stages.kept[hook])  # [n, T, D]
        if 2 <= x.shape[1] <= WIDEST_PAIRS and len(x) >= 64:
            _record_token_information(out, stages, hook, x)
    if not scores:
        return
    label = next(iter(scores))
    known, y = batch.observed[label].bool(), batch.labels[label]
    if "head_in" in stages.kept:
        x = torch.cat(stages.kept["head_in"]).flatten(1)
        _record_label_information(out, "head_in", x[known], y[known])
    for hook, parts in stages.pooled.items():
        x = torch.cat(parts)  # [n, D], NaN where a history is empty
        told = known & x[:, 0].isfinite()
        _record_label_information(out, hook, x[told], y[told], row_filter="valid")


def _record_label_information(
    out: Recorder, hook: str, x: Tensor, y: Tensor, row_filter: str = "all"
) -> None:
    half, d = len(x) // 2, x.shape[1]
    if any(int((side > 0.5).sum()) in (0, len(side)) for side in (y[:half], y[half:])):
        return
    k = clusters_for(half, labels=2)
    found = label_information(x, y, k=k)
    place = _information_place(hook, f"label_mi:{hook}:k{k}", found.n, d, math.log(2))
    place = replace(place, row_filter=row_filter)
    for metric in ("plug_in", "corrected", "shuffled", "std"):
        out.add(place, f"mi_{metric}", getattr(found, metric), accumulator="A6")
    place = _information_place(hook, f"{hook}:label", half, d, 1.0)
    place = replace(place, row_filter=row_filter)
    out.add(place, "separation", separation(x, y))
    try:
        out.add(place, "probe_auc", probe_auc(x, y))
    except MetricUndefinedError:
        out.add(place, "probe_auc", None)


def _record_token_information(out: Recorder, stages: Stages, hook: str, x: Tensor) -> None:
    n = len(x) - len(x) // 2
    k = clusters_for(n)
    place = _information_place(hook, f"token_mi:{hook}:k{k}", n, x.shape[2], math.log(k))
    labels = stages.names(hook, stages.axes[hook])
    for name, table in token_information(x, k=k).items():
        out.add(place, f"mi_{name}_map", None, accumulator="A6", array=table, labels=labels)
        out.add(place, f"mi_{name}", off_diagonal_mean(table), accumulator="A6")


def _information_place(hook: str, kind: str, n: int, d: int, bound: float) -> Place:
    return Place(hook=hook, kind=kind, n=n, d=d, bounds=(bound, bound))
