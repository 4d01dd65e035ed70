"""The area under the curve against its quadratic definition."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fullrank.ops.ranking import area_under_curve

ROWS = st.lists(
    st.tuples(st.sampled_from([-2.0, 0.0, 0.5, 3.0]), st.booleans(), st.sampled_from([0.5, 1, 3])),
    max_size=30,
)


@given(ROWS)
@settings(max_examples=60, deadline=None)
def test_area_equals_the_loop_over_all_pairs(rows) -> None:
    won = pairs = 0.0
    for s, y, w in rows:
        for t, z, v in rows:
            if y and not z:
                pairs += w * v
                won += w * v * (1.0 if s > t else 0.5 if s == t else 0.0)
    score, label = torch.tensor([r[0] for r in rows]), torch.tensor([r[1] for r in rows]).bool()
    weight = torch.tensor([r[2] for r in rows], dtype=torch.float64)
    found = area_under_curve(score, weight * label, weight * ~label)
    assert found == pytest.approx(won / pairs) if pairs else math.isnan(found)
