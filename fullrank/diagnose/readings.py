"""Readings: what findings say about projected tables, gates and rhythms, in numbers and words."""

from __future__ import annotations

from collections.abc import Mapping

from fullrank.diagnose.records import Findings, Record


def projections(findings: Findings) -> dict[str, tuple[Record, Record]]:
    """Returns field -> the table itself (M1) and its mean over partners (M9), of the same rows.

    Information abundance, not centred; from few rows of the table to many.
    """
    own: dict[tuple[str, str], Record] = {}  # (table, row filter)
    behind: dict[str, Record] = {}
    for r in findings.find(metric="ia", centred=False):
        kind, _, name = r.matrix_kind.partition(":")
        if kind == "table":
            own[name, r.row_filter] = r
        elif name.endswith("->*") and r.bound > 1:
            behind[name.removesuffix("->*")] = r
    order = sorted(behind, key=lambda field: own[behind[field].hook, "all"].n)
    return {f: (own[behind[f].hook, behind[f].row_filter], behind[f]) for f in order}


def gate_words(findings: Mapping[str, Findings]) -> str:
    """Returns what gates do with their experts, in one sentence; "" where no model has a gate.

    Args:
        findings: name of a model, as the sentence calls it -> its findings.
    """
    said = []
    for name, found in findings.items():
        for r in found.find(metric="gate_entropy"):
            mean, std = (
                [x.value or 0.0 for x in found.find(hook=r.hook, metric=metric)]
                for metric in ("gate_weight", "gate_weight_std")
            )
            weights = ", ".join(f"{m:.2f} ± {s:.2f}" for m, s in zip(mean, std, strict=True))
            same = found.value(hook=r.hook, metric="gate_entropy_of_mean") or 0.0
            said.append(
                f"{name} {weights}, entropy {r.value or 0.0:.2f} and {same:.2f} of {r.bound:.2f}"
            )
    if not said:
        return ""
    return (
        f" Gate weights: {'; '.join(said)}. Mean ± standard deviation over rows, an elementwise "
        "gate by its mean over units; entropy, in nats, of a row's weights and of the mean ones."
    )


def entropy_records(findings: Findings) -> dict[str, dict[str, Record]]:
    """Returns label -> metric -> record of the spectral entropy, where it was measured."""
    out: dict[str, dict[str, Record]] = {}
    for r in findings.records:
        kind, _, label = r.matrix_kind.partition(":")
        if kind == "spectral_entropy":
            out.setdefault(label, {})[r.metric] = r
    return {label: found for label, found in out.items() if "entropy_positive" in found}


def rhythm_words(findings: Findings) -> list[str]:
    """Returns one text per label that the spectral entropy was measured for."""
    newest = findings.latest()
    every = entropy_records(newest)
    named = {label: f"Label '{label}': " if len(every) > 1 else "" for label in every}
    return [said + entropy_words(newest, label) for label, said in named.items()]


def entropy_words(findings: Findings, label: str) -> str:
    """Returns whether targets with a positive label recur in their histories with a rhythm.

    Args:
        findings: of one model.
        label: one for which `entropy_records` has something.
    """
    found = entropy_records(findings)[label]

    def value(metric: str) -> float | None:
        r = found.get(f"entropy_{metric}")
        return None if r is None else r.value

    n, window = found["entropy_left_out"].n, found["entropy_left_out"].d
    counted = (
        f"{n:,} rows, window {window}; {value('left_out') or 0.0:,.0f} more have no spectrum, "
        "fewer than 3 events, or events that all match alike."
    )
    auc, plain = value("auc_matched"), value("auc")
    if auc is None:
        return (
            f"No two histories of equal length and different label: nothing to compare. {counted}"
        )
    low, high = value("auc_matched_low") or 0.0, value("auc_matched_high") or 0.0
    if low > 0.5:
        said = "Positives have the more concentrated spectrum: their users return with a rhythm."
    elif high < 0.5:
        said = "Positives have the flatter spectrum: they break with the rhythm of their users."
    else:
        said = "The spectrum does not tell positives from negatives: no rhythm can be seen."
    numbers = (
        f"AUC of low H {auc:.3f} ({low:.3f} to {high:.3f}) between histories of equal length, "
        f"{value('pairs_matched') or 0.0:,.0f} pairs; mean H of positives "
        f"{value('positive_matched') or 0.0:.3f}, of negatives "
        f"{value('negative_matched') or 0.0:.3f}."
    )
    if plain is not None:
        numbers += f" Without length matching {plain:.3f}"
        apart = not low <= plain <= high
        numbers += ", which length alone explains in part." if apart else "."
    return f"{said} {numbers} {counted}"
