"""Groupings: which field reaches which token, and the shapes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fullrank.errors import ConfigError
from fullrank.nn.tokens import ChunkTokens, RandomTokens, grouping, pool_tokens

NAMES = tuple(f"f{i}" for i in range(7))
WIDTH, DIM = 3, 4


def reach(module, fields=7, width=WIDTH):
    """[N, F] bool: does token n depend on field f?"""
    x = torch.randn(1, fields, width)
    jacobian = torch.autograd.functional.jacobian(module, x)[0, :, :, 0]  # [N, D, F, D_e]
    return jacobian.abs().sum((1, 3)) > 0


def test_a_chunk_is_a_slice_through_its_own_projection():
    torch.manual_seed(0)
    module = ChunkTokens(7, WIDTH, 4, DIM)  # 21 values, chunks of 6, 3 zeros appended
    x = torch.randn(2, 7, WIDTH)
    out, flat = module(x), F.pad(x.flatten(1), (0, 3))
    for i in range(4):
        own = flat[:, i * 6 : (i + 1) * 6] @ module.projection.weight[i] + module.projection.bias[i]
        torch.testing.assert_close(out[:, i], own)


def test_field_makes_every_field_a_token():
    assert torch.equal(reach(grouping("field", NAMES, WIDTH, 7, DIM)), torch.eye(7).bool())


def test_auto_split_shows_every_field_to_every_token():
    assert bool(reach(grouping("auto_split", NAMES, WIDTH, 3, DIM, hidden=(50,))).all())


def test_shared_projection_is_one_for_all_chunks():
    module = grouping("shared_proj", NAMES[:6], WIDTH, 3, DIM, hidden=(5,))
    x = torch.randn(2, 2, WIDTH).repeat(1, 3, 1)
    out = module(x)
    torch.testing.assert_close(out, out[:, :1].expand_as(out))
    own = grouping("chunk", NAMES[:6], WIDTH, 3, DIM)(x)
    assert not torch.allclose(own, own[:, :1].expand_as(own))


def test_groups_reach_their_own_token_only():
    groups = ("f0", "f5"), ("f1", "f2", "f6"), ("f3", "f4")
    seen = reach(grouping("group", NAMES, WIDTH, 3, DIM, groups=groups, hidden=(50,)))
    expected = [[name in group for name in NAMES] for group in groups]
    assert seen.tolist() == expected


@pytest.mark.parametrize(
    ("groups", "found"),
    [
        ((("f0", "f1", "f2", "f3", "f4", "f5"), ("f66",)), "f66"),
        ((("f0", "f1", "f2", "f3", "f4", "f5"), ("f5", "f6")), "f5"),
        ((("f0", "f1", "f2", "f3", "f4"), ("f5",)), "f6"),
    ],
)
def test_groups_that_are_no_partition_are_refused(groups, found):
    with pytest.raises(ConfigError) as refused:
        grouping("group", NAMES, WIDTH, 2, DIM, groups=groups)
    assert found in refused.value.found


@pytest.mark.parametrize("tokens", [1, 3, 5, 7])
def test_random_groups_are_a_partition_of_nearly_equal_size(tokens):
    seen = reach(RandomTokens(7, WIDTH, tokens, DIM, seed=3))
    assert seen.sum(0).tolist() == [1] * 7
    sizes = seen.sum(1)
    assert sizes.max() - sizes.min() <= 1
    count = sum(p.numel() for p in RandomTokens(7, WIDTH, tokens, DIM).parameters())
    assert count == 7 * WIDTH * DIM + tokens * DIM


def test_the_random_order_is_of_its_seed_and_leaves_the_global_state_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    orders = [RandomTokens(7, 1, 7, 1, seed=s).order for s in (1, 1, 2)]
    torch.manual_seed(0)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[0], orders[2])
    assert "order" in RandomTokens(7, 1, 7, 1).state_dict()


def test_random_with_the_schema_order_equals_chunks_of_whole_fields():
    torch.manual_seed(0)
    module, chunks = RandomTokens(6, WIDTH, 3, DIM), ChunkTokens(6, WIDTH, 3, DIM)
    module.order.copy_(torch.arange(6))
    module.projections[1].load_state_dict(chunks.projection.state_dict())
    x = torch.randn(2, 6, WIDTH)
    assert torch.equal(module(x), chunks(x))


@pytest.mark.parametrize(
    ("kind", "tokens", "suggested"),
    [("chunk", 22, "21"), ("random", 8, "7"), ("field", 6, "7"), ("chunk", 0, "2")],
)
def test_impossible_numbers_of_tokens_are_refused_with_the_nearest(kind, tokens, suggested):
    with pytest.raises(ConfigError) as refused:
        grouping(kind, NAMES, WIDTH, tokens, DIM)
    assert suggested in refused.value.fix
    grouping(kind, NAMES, WIDTH, int(suggested), DIM)


def test_pooling():
    x = torch.tensor([[[1.0, 2.0], [3.0, 6.0]]])
    assert pool_tokens(x, "mean").tolist() == [[2.0, 4.0]]
    assert pool_tokens(x, "cls").tolist() == [[1.0, 2.0]]
    assert pool_tokens(x, "flatten").tolist() == [[1.0, 2.0, 3.0, 6.0]]
