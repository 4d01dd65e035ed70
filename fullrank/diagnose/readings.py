"""Readings: what findings say about projected tables and about gates, as numbers and in words."""

from __future__ import annotations

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


def gate_words(findings: Findings) -> str:
    """Returns what the gates of the experts do, in a sentence each; "" without a gate."""
    said = ""
    for r in findings.find(metric="gate_entropy"):
        each = [
            findings.find(hook=r.hook, matrix_kind=f"gate:{k}", metric=m)[-1].value or 0.0
            for m in ("gate_weight", "gate_weight_std")
            for k in range(r.d)
        ]
        weights = [f"{w:.2f} ± {s:.2f}" for w, s in zip(each[: r.d], each[r.d :], strict=True)]
        same = findings.value(hook=r.hook, metric="gate_entropy_of_mean") or 0.0
        said += (
            f" '{r.hook}' weighs the experts {', '.join(weights)} (mean and standard deviation "
            f"over rows); entropy {r.value or 0.0:.2f} per row, {same:.2f} of the mean, at most "
            f"{r.bound:.2f} nats. An elementwise gate counts with its mean over units."
        )
    return said
