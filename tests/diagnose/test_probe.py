"""Probes leave no trace, and the diagnostic subset does not depend on how rows are cut."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fullrank.batch import Batch
from fullrank.diagnose.probe import (
    fingerprint,
    joined,
    measuring,
    take_subset,
    tap_names,
    watch,
)
from fullrank.diagnose.records import Record
from fullrank.errors import EmptyInputError, UnknownNameError
from tests.diagnose.tiny_ranker import Tiny, make_batch


class Spy:
    def __init__(self, taps: str) -> None:
        self.taps = taps
        self.seen: list[tuple[str, Tensor, str, Batch | None]] = []

    def observe(self, name: str, x: Tensor, axes: str, batch: Batch | None) -> None:
        self.seen.append((name, x, axes, batch))

    def report(self) -> list[Record]:
        return []


def test_hooks_see_only_matching_taps_and_go_away(tiny: Tiny) -> None:
    spy, batch = Spy("*ed"), make_batch(8)
    with watch(tiny, spy) as seen:
        seen.score(batch)
    tiny.score(batch)  # unwatched
    assert [s[0] for s in spy.seen] == ["embed"]
    name, x, axes, told = spy.seen[0]
    assert (name, axes, x.dtype, tuple(x.shape)) == ("embed", "B F D", torch.float64, (8, 4, 4))
    assert told is batch
    assert not x.requires_grad
    assert all(not m._forward_hooks for m in tiny.modules())


def test_masks_stay_bool_and_names_keep_their_order(tiny: Tiny) -> None:
    spy = Spy("*")
    with watch(tiny, spy) as seen:
        seen.score(make_batch(8))
    assert next(x for n, x, _, _ in spy.seen if n == "seq_valid").dtype == torch.bool
    assert set(tap_names(tiny)) == {n for n, *_ in spy.seen}


def test_a_glob_without_a_match_names_the_taps(tiny: Tiny) -> None:
    with pytest.raises(UnknownNameError) as caught, watch(tiny, Spy("tokns")):
        pass
    assert "tokens" in caught.value.fix
    with watch(torch.nn.Linear(1, 1), Spy("*")):  # a model without taps is no error
        pass


def everything() -> list[object]:
    return [torch.rand(3).tolist(), random.random(), np.random.rand(2).tolist()]


@pytest.mark.parametrize("fails", [False, True])
def test_modes_gradients_and_random_states_are_put_back(tiny: Tiny, fails: bool) -> None:
    tiny.train()
    tiny.norm.eval()  # a frozen part must stay frozen
    before = [m.training for m in tiny.modules()]
    running = tiny.norm.running_mean.clone()
    torch.manual_seed(5), random.seed(5), np.random.seed(5)
    expected = everything()
    torch.manual_seed(5), random.seed(5), np.random.seed(5)
    try:
        with watch(tiny, Spy("*")) as seen:
            assert not any(m.training for m in tiny.modules())
            assert not torch.is_grad_enabled()
            seen.score(make_batch(8))
            everything()
            if fails:
                raise KeyError
    except KeyError:
        pass
    assert everything() == expected
    assert [m.training for m in tiny.modules()] == before
    assert torch.is_grad_enabled()
    assert torch.equal(tiny.norm.running_mean, running)
    assert all(not m._forward_hooks for m in tiny.modules())


def test_a_compiled_model_is_looked_at_underneath(tiny: Tiny) -> None:
    spy = Spy("embed")
    wrapper = nn.Module()  # what torch.compile returns, as far as we know it
    wrapper._orig_mod = tiny
    with watch(wrapper, spy) as seen:
        seen.score(make_batch(4))
    assert [s[0] for s in spy.seen] == ["embed"]


def test_measuring_alone_draws_nothing(tiny: Tiny) -> None:
    torch.manual_seed(1)
    with measuring(tiny):
        torch.rand(10)
    after = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(after, torch.rand(1))


@pytest.mark.parametrize("cut", [1, 7, 64, 500])
@pytest.mark.parametrize("rows", [20, 499, 5000])
def test_the_subset_does_not_depend_on_how_rows_are_cut(cut: int, rows: int) -> None:
    whole = make_batch(500)
    parts = [whole.rows(torch.arange(500)[i : i + cut]) for i in range(0, 500, cut)]
    direct, pieces = take_subset([whole], rows, seed=4), take_subset(parts, rows, seed=4)
    assert direct.hash == pieces.hash
    assert len(direct.batch) == min(rows, 500)
    groups = direct.batch.group.tolist()
    assert len(set(groups)) == len(groups)
    assert sum(len(p) for p in direct.parts(33)) == len(direct.batch)


def test_the_subset_is_a_shuffle_prefix_and_changes_with_the_seed() -> None:
    whole = make_batch(500)
    small, large = (take_subset([whole], n, seed=1).batch.group.tolist() for n in (50, 300))
    assert large[:50] == small
    assert small != sorted(small)
    assert take_subset([whole], 50, seed=2).batch.group.tolist() != small
    share = sum(g < 250 for g in large) / 300  # no part of the stream is favoured
    assert 0.4 < share < 0.6


def test_the_hash_sees_every_value() -> None:
    whole = make_batch(50)
    other = make_batch(50)
    other.sequences["past"].values["item"][3] += 1
    assert fingerprint(whole) == fingerprint(make_batch(50))
    assert fingerprint(whole) != fingerprint(other)


def test_joined_batches_hold_the_same_rows() -> None:
    whole = make_batch(60)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    parts = [whole.rows(order[:25]), whole.rows(order[25:])]
    assert fingerprint(joined(parts)) == fingerprint(whole.rows(order))


def test_no_rows_is_an_error() -> None:
    with pytest.raises(EmptyInputError):
        take_subset([], 10)
