"""GAUC: AUC within each user or request, averaged over them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fullrank.batch import Batch
from fullrank.errors import MetricUndefinedError, SchemaError
from fullrank.evaluate.metric import Rows, RowStore, refuse_unlike


@dataclass(frozen=True, slots=True, eq=False)
class GroupAUCs:
    """The AUC of each of G groups, in rising order of group.

    Args:
        group: [G] int64.
        auc: [G] float64; 0 where not defined, so that sums may skip it.
        defined: [G] bool, True where the group holds both labels.
        weight: [G] float64, the summed weight of the group's rows: their number when rows
            are not weighted.
    """

    group: Tensor
    auc: Tensor
    defined: Tensor
    weight: Tensor

    def means(self) -> tuple[float, float]:
        """Returns the mean weighted by group size, and the unweighted mean."""
        kept = self.auc[self.defined]
        weight = self.weight[self.defined]
        return float(weight @ kept / weight.sum()), float(kept.mean())


def group_aucs(rows: Rows) -> GroupAUCs:
    """Computes the AUC within every group, with half credit for ties.

    Two stable sorts and segment sums; no loop over groups, memory linear in rows.

    Args:
        rows: with groups.

    Raises:
        SchemaError: the rows have no groups.
    """
    if rows.group is None:
        raise SchemaError(
            "rows have no groups",
            where="GAUC",
            found="no group column",
            expected="a user or request for every row",
            fix="name the column as `group` in the spec",
        )
    by_score = torch.argsort(rows.score, stable=True)
    order = by_score[torch.argsort(rows.group[by_score], stable=True)]  # by group, then score
    group, score = rows.group[order], rows.score[order]
    masses = torch.stack(rows.masses())[:, order]  # [2, n]
    new_group = torch.ones(len(rows), dtype=torch.bool)
    new_group[1:] = group[1:] != group[:-1]
    new_tie = new_group.clone()
    new_tie[1:] |= score[1:] != score[:-1]
    tie = new_tie.cumsum(0) - 1  # [n] number of the run of equal group and score
    owner = (new_group.cumsum(0) - 1)[new_tie]  # [runs] group of each run
    runs = torch.zeros(2, len(owner), dtype=torch.float64).index_add_(1, tie, masses)
    num_groups = int(owner[-1]) + 1 if len(owner) else 0
    totals = torch.zeros(2, num_groups, dtype=torch.float64).index_add_(1, owner, runs)
    before = runs[1].cumsum(0) - runs[1]  # [runs] negatives of all earlier runs
    first = torch.ones(len(owner), dtype=torch.bool)
    first[1:] = owner[1:] != owner[:-1]
    below = before - before[first][owner]  # [runs] negatives of earlier runs of the group
    ordered = torch.zeros(num_groups, dtype=torch.float64).index_add_(
        0, owner, runs[0] * (below + 0.5 * runs[1])
    )
    defined = (totals > 0).all(0)
    pairs = torch.where(defined, totals.prod(0), 1.0)
    return GroupAUCs(group[new_group], ordered / pairs * defined, defined, totals.sum(0))


class GAUC:
    """AUC within groups that hold both labels, averaged with the groups' sizes as weights.

    Zhu et al., KDD 2017. Keeps every row, about 17 bytes each.

    Args:
        label: which label.
    """

    def __init__(self, label: str) -> None:
        self.label = label
        self._store = RowStore()

    def update(self, prediction: Mapping[str, Tensor], batch: Batch) -> None:
        """Adds the observed rows of a batch. `prediction` holds label -> logits [B]."""
        self._store.add(Rows.observed(prediction, batch, self.label))

    def merge(self, other: GAUC) -> None:
        """Adds what another has seen; a group may be spread over both."""
        refuse_unlike(self, other, "label")
        self._store.merge(other._store)

    def compute(self) -> dict[str, float]:
        """Returns `gauc`, the unweighted `gauc_mean`, and `gauc_dropped`, a number of groups.

        Raises:
            EmptyInputError: no observed row was seen.
            MetricUndefinedError: no group holds both labels.
        """
        where = f"GAUC of label '{self.label}'"
        groups = group_aucs(self._store.rows(where))
        refuse_undefined_groups(groups, where)
        weighted, plain = groups.means()
        dropped = len(groups.group) - int(groups.defined.sum())
        return {"gauc": weighted, "gauc_mean": plain, "gauc_dropped": float(dropped)}


def refuse_undefined_groups(groups: GroupAUCs, where: str) -> None:
    """Raises a MetricUndefinedError unless some group holds both labels."""
    if not groups.defined.any():
        raise MetricUndefinedError(
            "GAUC is undefined because no group holds both labels",
            where=where,
            found=f"{len(groups.group):,} groups, in each of which all labels are equal",
            expected="at least one group with a positive and a negative row",
            fix="group by something coarser, such as the user instead of the request",
        )
