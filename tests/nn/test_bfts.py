"""Schedules are read, windows spread, and what a schedule saves is counted."""

from __future__ import annotations

import pytest

from fullrank.errors import ConfigError
from fullrank.nn.attention_mask import Visibility
from fullrank.nn.bfts import BFTS, layers_of, spread
from fullrank.nn.token_sequence import TokenSequence

FIELDS, TARGETS, LENGTH, DIM = 3, 3, 14, 8


def bfts(schedule, windows=(), **rule):
    tokens = TokenSequence(DIM, TARGETS, 1, 9)
    return BFTS(layers_of(schedule), windows, Visibility(num_static=FIELDS, **rule), tokens, None)


def test_schedules_are_read_from_the_bottom():
    assert layers_of("2F2S") == layers_of("FFSS") == "FFSS"
    assert layers_of("S10F") == "S" + 10 * "F"
    for wrong in ("", "2", "F2", "2f", "2F 2S", "0F"):
        with pytest.raises(ConfigError, match="2F2S"):
            layers_of(wrong)


def test_windows_spread_from_the_first_to_the_last():
    assert spread((32, 16), 2) == (32, 16)
    assert spread((32, 16), 3) == (32, 24, 16)
    assert spread((16, 32), 1) == (32,)
    assert spread((32, 16), 0) == ()


def test_u9_windows_and_dropped_fields_save_attention():
    kept = {
        schedule: bfts(schedule, windows, discard_static=True).flops(LENGTH, DIM)
        for schedule, windows in (("4F", ()), ("3F1S", (6,)), ("2F2S", (9, 6)))
    }
    pairs = sum(range(1, LENGTH + 1))
    assert kept["4F"] == [4 * DIM * pairs] * 4
    rest = LENGTH - FIELDS
    seen = sum(min(i + 1, 6) for i in range(rest))
    assert kept["3F1S"] == [4 * DIM * pairs] * 3 + [4 * DIM * seen]
    assert sum(kept["2F2S"]) < sum(kept["3F1S"]) < sum(kept["4F"])


@pytest.mark.parametrize(
    ("schedule", "windows", "rule", "drop_at", "can_pack"),
    [
        ("2F2S", (9, 6), {"discard_static": True}, 2, True),
        ("2F2S", (9, 6), {}, 4, False),
        ("2S2F", (9, 6), {"discard_static": True}, 4, False),
        ("4F", (), {}, 4, True),
        ("4F", (), {"static_bidirectional": True}, 4, False),
        ("2S", (9, 0), {"discard_static": True}, 0, True),
    ],
)
def test_fields_leave_above_the_last_layer_that_sees_them(
    schedule, windows, rule, drop_at, can_pack
):
    built = bfts(schedule, windows, **rule)
    assert (built.drop_at, built.can_pack) == (drop_at, can_pack)
    assert not any(
        r.discard_static for r, k in zip(built.rules, layers_of(schedule), strict=True) if k == "F"
    )


def test_a_window_that_reaches_no_behaviour_is_refused_with_the_smallest_that_does():
    with pytest.raises(ConfigError, match=r"(?s)at least 5.*\(5, 5\)"):
        bfts("2S", (5, 4))
    bfts("2S", (5, 0))
