"""Figures of models that read a past: sequence tokens by layer, and the rhythm of interest."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fullrank.chart import Lines, density_chart, interval_chart, panel_chart
from fullrank.diagnose.figures import Figure, Section, Shown
from fullrank.diagnose.readings import entropy_records, entropy_words
from fullrank.diagnose.records import Record
from fullrank.diagnose.side_by_side import merged
from fullrank.diagnose.verdict import gaussian_ceiling

_OF_LAYER = ("seq", "nlir", "gate", "attention")  # leaves of hooks that belong to one layer
_Found = dict[str, dict[str, Record]]  # model -> layer -> record


def sequences_together(runs: Sequence[Shown]) -> Iterable[Section]:
    """Yields sections whose figures show all models at once; nothing for a single one."""
    if len(runs) > 1:
        yield _layer_section(runs, ", side by side")
        yield Section(_RHYTHM + ", side by side", _RHYTHM_TEXT, list(_rhythms(runs)))


def sequences_apart(runs: Sequence[Shown]) -> Iterable[Section]:
    """Yields sections with figures of one model each."""
    if len(runs) == 1:
        yield _layer_section(runs)
    yield Section(_RHYTHM, _RHYTHM_TEXT, [f for run in runs for f in _entropies(run)])


_RHYTHM = "Rhythm of interest: spectral entropy"
_RHYTHM_TEXT = (
    "How alike a target and each event of its history are, read in order, has a spectrum. It is "
    "concentrated, of low entropy H, where the user returns to the target with a period. Positives "
    "and negatives are weighted to equal lengths of history, because length alone moves H."
)


def _layer_section(runs: Sequence[Shown], together: str = "") -> Section:
    return Section(
        "Sequence tokens, layer by layer" + together,
        "Fields of few values live in few dimensions. Tokens of a history that attend to them can "
        "be pulled into few dimensions as well (Sequential Collapse Propagation): compare a model "
        "with one that keeps the fields away from the history. A higher rank alone is no gain; "
        "read it beside what the tokens still say about the label.",
        list(_layers(runs)),
    )


def _layers(runs: Sequence[Shown]) -> Iterable[Figure]:
    ranks = _by_layer(runs, "erank", "seq_tokens:", centred=True)
    told = _by_layer(runs, "mi_corrected", "label_mi:")
    told = {run: _kept(row, ranks.get(run, {})) for run, row in told.items()}
    static = _by_layer(runs, "attention_static", "attention:")
    gates = _by_layer(runs, "gate_mean", "gate_values:")
    everything = [row for found in (ranks, told, static, gates) for row in found.values()]
    places = merged(list(row) for row in everything)
    if len(places) < 2 and len(ranks) < 2:
        return  # one number, which the figure of all stages shows
    shapes = {(r.n, r.d) for row in ranks.values() for r in row.values()}
    alike = len(shapes) == 1
    panels = [
        Lines(
            "Effective rank of sequence tokens" + ("" if alike else ", share of noise"),
            {run: [_rank(row.get(p), alike) for p in places] for run, row in ranks.items()},
        ),
        _panel(runs, "Mutual information with the label, nats", told, places, "mi_std"),
        _panel(runs, "Attention to static tokens, percent", static, places),
        _panel(runs, "Gate, mean and standard deviation", gates, places, "gate_std"),
    ]
    shown = [p for p in panels if any(v is not None for row in p.rows.values() for v in row)]
    svg = panel_chart(shown, title="Sequence tokens by layer", x="layer", places=places)
    yield Figure(svg, _layer_words(runs, ranks, told, gates))


def _by_layer(
    runs: Sequence[Shown], metric: str, kind: str, *, centred: bool = False
) -> dict[str, dict[str, Record]]:
    out: _Found = {}
    for run in runs:
        for r in run.newest.find(metric=metric, centred=centred, row_norm="none"):
            if r.matrix_kind.startswith(kind) and r.value is not None:
                out.setdefault(run.name, {})[_layer(r.hook)] = r
    return out


def _layer(hook: str) -> str:
    layer, _, leaf = hook.rpartition(".")
    return layer if leaf in _OF_LAYER and layer else hook


def _kept(row: dict[str, Record], among: dict[str, Record]) -> dict[str, Record]:
    return {layer: r for layer, r in row.items() if layer in among}


def _rank(r: Record | None, alike: bool) -> float | None:
    if r is None or r.value is None:
        return None
    return r.value if alike else r.value / gaussian_ceiling(r.n, int(r.bound))


def _panel(
    runs: Sequence[Shown], title: str, found: _Found, places: Sequence[str], std: str = ""
) -> Lines:
    rows = {run: [row[p].value if p in row else None for p in places] for run, row in found.items()}
    spread = {
        run.name: [
            run.newest.value(hook=found[run.name][p].hook, metric=std)
            if p in found[run.name]
            else None
            for p in places
        ]
        for run in runs
        if std and run.name in found
    }
    return Lines(title, rows, spread, whole=(0.0,))


def _layer_words(runs: Sequence[Shown], ranks: _Found, told: _Found, gates: _Found) -> str:
    words = [
        "Rank: M6, centred, at most the newest 32 events of a sample. Information: of the mean "
        "over a history, clustered and corrected; its band is the spread over seeds."
    ]
    last = {run: list(row.values())[-1] for run, row in ranks.items()}
    said = [f"{run} {r.value or 0.0:.1f} ({r.n:,} x {r.d})" for run, r in last.items()]
    if said:
        words.append(f"Rank at the last layer: {'; '.join(said)}.")
    each = {(r.matrix_kind.rpartition(":k")[2], r.n) for row in told.values() for r in row.values()}
    if each:
        # 2 n times the information of independent variables is chi-squared with k - 1 degrees.
        chance = max((2 * (int(k) - 1)) ** 0.5 / n for k, n in each)
        words.append(f"Without information chance gives 0 ± {chance:.4f} nats (two deviations).")
    shut = {
        run.name: [
            run.newest.value(hook=r.hook, metric="gate_saturation") or 0.0
            for r in gates[run.name].values()
        ]
        for run in runs
        if run.name in gates
    }
    if shut:
        said = [f"{run} {max(shares):.1%}" for run, shares in shut.items()]
        words.append(f"Gates nearly open or shut, |g - 0.5| > 0.45, at most: {'; '.join(said)}.")
    return " ".join(words)


def _entropies(run: Shown) -> Iterable[Figure]:
    for label, found in entropy_records(run.newest).items():
        histograms = {}
        for words, side in (("yes", "positive"), ("no", "negative")):
            r = found.get(f"entropy_{side}_matched")
            if r is None or r.value is None:  # no two histories of equal length
                r = found[f"entropy_{side}"]
            if r.value is not None:
                histograms[f"{label}: {words}"] = _bars(run.newest.arrays[r.array].tolist())
        if histograms:
            svg = density_chart(
                histograms, title=f"{run.name}: target and history", x="spectral entropy"
            )
            yield Figure(svg, entropy_words(run.newest, label))


def _bars(counts: list[float]) -> tuple[list[float], list[float]]:
    """Returns edges and counts over [0, 1], empty ends cut."""
    held = [i for i, count in enumerate(counts) if count]
    first, last = max(0, held[0] - 1), min(len(counts), held[-1] + 2)
    return [i / len(counts) for i in range(first, last + 1)], counts[first:last]


def _rhythms(runs: Sequence[Shown]) -> Iterable[Figure]:
    rows = []
    for run in runs:
        every = entropy_records(run.newest)
        for label, found in every.items():
            ends = [found.get(f"entropy_auc_matched{end}") for end in ("", "_low", "_high")]
            values = [r.value for r in ends if r is not None and r.value is not None]
            if len(values) == 3:
                name = run.name + (f", {label}" if len(every) > 1 else "")
                rows.append((name, values[0], values[1], values[2]))
    if len(rows) > 1:
        svg = interval_chart(
            rows,
            title="Low entropy as the only score, between equal lengths",
            x="AUC of low entropy, with 95 % interval",
            reference=0.5,
        )
        yield Figure(svg, "The same rows, matched by the tables that each model has learnt.")
