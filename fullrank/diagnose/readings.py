"""Readings: what findings say about projected tables and about gates, as numbers and in words."""

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
