"""Small logs to measure, drawn by hypothesis."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from hypothesis import settings
from hypothesis import strategies as st

from fullrank.batch import Batch, Columns

few = settings(deadline=None, max_examples=60, derandomize=True)


@dataclass
class Log:
    """Rows of one label "click": what tests and twins both read."""

    score: list[float]
    label: list[int]
    weight: list[float]
    group: list[int]
    observed: list[bool]

    def __len__(self) -> int:
        return len(self.score)

    def seen(self) -> tuple[list[float], list[int], list[float], list[int]]:
        """Returns scores, labels, weights and groups of the observed rows."""
        rows = [i for i, known in enumerate(self.observed) if known]
        parts = (self.score, self.label, self.weight, self.group)
        return tuple([part[i] for i in rows] for part in parts)  # type: ignore[return-value]

    def batch(self, start: int = 0, stop: int | None = None) -> tuple[dict, Batch]:
        """Returns a prediction and a batch of some rows."""
        part = slice(start, stop)
        n = len(self.score[part])
        label = torch.tensor(self.label[part], dtype=torch.float32)
        observed = torch.tensor(self.observed[part], dtype=torch.bool)
        batch = Batch(
            categorical=Columns.none(n, torch.int32),
            numeric=Columns.none(n, torch.float32),
            labels=Columns(("click",), label.reshape(n, 1)),
            observed=Columns(("click",), observed.reshape(n, 1)),
            weight=torch.tensor(self.weight[part], dtype=torch.float32),
            group=torch.tensor(self.group[part], dtype=torch.int64),
            time=torch.zeros(n, dtype=torch.int64),
        )
        return {"click": torch.tensor(self.score[part], dtype=torch.float32)}, batch


_LEVELS = st.sampled_from([-60.0, -16.2, -3.0, -0.5, -0.0, 0.0, 1e-30, 0.25, 0.25, 2.0, 16.0, 70.0])
_ANY = st.floats(-80, 80, width=32)


@st.composite
def _logs(draw: st.DrawFn, min_size: int = 1, max_size: int = 24) -> Log:
    n = draw(st.integers(min_size, max_size))

    def column(values: st.SearchStrategy) -> list:
        return draw(st.lists(values, min_size=n, max_size=n))

    return Log(
        score=column(_LEVELS | _ANY),
        label=column(st.integers(0, 1)),
        weight=column(st.sampled_from([0.5, 1.0, 1.0, 4.0])),
        group=column(st.integers(-1, 4)),
        observed=column(st.sampled_from([True, True, True, False])),
    )


def logs(min_size: int = 1, max_size: int = 24) -> st.SearchStrategy[Log]:
    """Small logs with ties, extreme scores, weights, groups and rows that are not observed."""
    return _logs(min_size, max_size)


def fold(make, log: Log, cuts: list[int]):
    """Returns one metric that is merged from parts; a part may hold no rows."""
    edges = [0, *sorted(min(cut, len(log)) for cut in cuts), len(log)]
    whole = make()
    for start, stop in itertools.pairwise(edges):
        part = make()
        part.update(*log.batch(start, stop))
        whole.merge(part)
    whole.merge(make())  # and one that has seen nothing
    return whole
