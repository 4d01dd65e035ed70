"""RankElastor: its two presets, its switches, and what each part can and cannot learn."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from torch import nn

from fullrank.config import from_dict, to_dict
from fullrank.diagnose.probe import watch
from fullrank.errors import ConfigError
from fullrank.models.rankelastor import RankElastor, RankElastorConfig
from fullrank.models.rankmixer import RankMixer, RankMixerConfig
from fullrank.nn.mixing import MultiheadMixing
from fullrank.ops.spectrum import erank, singular_values, stable_rank
from fullrank.schema import Categorical, Label, Schema, Table
from fullrank.testing.cases import area_under_curve, fit, planted, random_batch

FIELDS, VALUES = 4, 6
SCHEMA = Schema(
    tables=tuple(Table(f"t{i}", VALUES) for i in range(FIELDS)),
    fields=tuple(Categorical(f"f{i}", f"t{i}") for i in range(FIELDS)),
    labels=(Label("click"), Label("buy")),
)
SIZES = {"embedding_dim": 3, "embedding_std": 0.5, "num_tokens": 2, "token_dim": 4}
PAPER = RankElastorConfig.paper(**SIZES, num_blocks=2)
OFFICIAL = RankElastorConfig.official(**SIZES, num_blocks=2, token_hidden=(5,), hidden_units=(6,))
MIXES = ("full", "block_transpose", "identity", "kron", "kron_official", "full_lowrank")


def some_rows(rows, schema=SCHEMA, seed=0):
    return random_batch(schema, rows, torch.Generator().manual_seed(seed))


def count(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("preset", ["paper", "official"])
def test_every_mix_builds_in_both_presets_and_every_parameter_learns(preset, mix):
    torch.manual_seed(0)
    config = getattr(RankElastorConfig, preset)(**SIZES, mix=mix)
    assert from_dict(RankElastorConfig, to_dict(config)) == config
    model = RankElastor(SCHEMA, config)
    torch.stack(list(model(some_rows(64)).values())).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_u3_parameters_of_both_presets():
    T, D, r = 2, 4, 3
    paper = RankElastor(SCHEMA, PAPER)
    mixing, ffn, norm = (T * D) ** 2, T * (3 * r + 1) * D**2, 2 * D
    assert count(paper.block0) == mixing + ffn + norm
    tables, cuts, head = FIELDS * VALUES * 3, T * (6 * D + D), 2 * T * D * (T * D + 1)
    head += 2 * T * D + 1
    assert count(paper) == tables + cuts + 2 * (mixing + ffn + norm) + 2 * head
    official = RankElastor(SCHEMA, OFFICIAL).block0
    a, wide, h = D, 2 * D, 6
    stage = 4 * a * wide + a**2 + 3 * wide + 2 * a + a + a * h + h
    assert count(official) == (T * D) ** 2 + T * D + T * D + D + T * (stage + h * D + D)


def test_the_presets_are_the_equations_they_name():
    """Both blocks written out, with the weights of the model itself."""
    torch.manual_seed(0)
    x = torch.randn(5, 2, 4)
    block = RankElastor(SCHEMA, PAPER).block0
    m = x.flatten(1) @ (block.mixing.weight + torch.eye(8)).T
    m = nn.functional.layer_norm(m.view_as(x), (4,))
    ffn, times = block.feed_forward[0], lambda v, w: torch.einsum("bti,tio->bto", v, w.weight)
    gate = nn.functional.gelu(times(m, ffn.w1)) * times(m, ffn.w2)
    torch.testing.assert_close(block(x), times(gate, ffn.w3) + times(m, ffn.s1))

    block, rms = RankElastor(SCHEMA, OFFICIAL).block0, nn.functional.rms_norm
    nn.init.normal_(block.mixing.bias)
    flat = rms(x.flatten(1), (8,)) @ block.mixing.weight.T + block.mixing.bias
    m = rms(x + flat.view_as(x), (4,))
    torch.testing.assert_close(block(x), m + block.feed_forward(m))


def test_u1_started_at_the_permutation_the_model_is_the_one_that_mixes_by_it():
    torch.manual_seed(0)
    config = replace(OFFICIAL, mix_init="block_transpose")
    learned = RankElastor(SCHEMA, config)
    fixed = RankElastor(SCHEMA, replace(OFFICIAL, mix="block_transpose", mix_bias=True))
    state = {k: v for k, v in learned.state_dict().items() if "mixing" not in k}
    fixed.load_state_dict(state)
    assert isinstance(fixed.block0.mixing, MultiheadMixing)
    batch = some_rows(9)
    torch.testing.assert_close(learned.score(batch), fixed.score(batch))
    nn.init.normal_(learned.block0.mixing.weight)
    assert not torch.allclose(learned.score(batch)["click"], fixed.score(batch)["click"])


def hooks_of(model, batch):
    """Returns tap -> what it saw, [B, N, D]."""
    seen = {}

    class Keep:
        taps = "*"

        def observe(self, name, x, axes, batch):
            if axes == "B N D":
                seen[name] = x

    with watch(model, Keep()) as watched:
        watched.score(batch)
    return seen


@pytest.mark.parametrize("config", [PAPER, OFFICIAL])
def test_u5_on_every_hook_stable_rank_is_at_most_effective_rank(config):
    torch.manual_seed(0)
    seen = hooks_of(RankElastor(SCHEMA, config), some_rows(200))
    names = {f"block{i}.{at}" for i in (0, 1) for at in ("mix", "mix_branch", "ffn", "ffn_branch")}
    assert set(seen) == names | {"tokens"}
    for x in seen.values():
        for matrix, center in ((x, False), (x.transpose(0, 1), True), (x.transpose(0, 1), False)):
            s = singular_values(matrix, center=center)
            assert bool((stable_rank(s) <= erank(s) + 1e-9).all())
            assert bool((erank(s) <= min(matrix.shape[1:]) + 1e-9).all())


def test_tokens_meet_in_the_mixing_and_nowhere_else():
    torch.manual_seed(0)
    x = torch.randn(1, 2, 4)

    def reach(mix, **changes):
        model = RankElastor(SCHEMA, RankElastorConfig.official(**SIZES, mix=mix, **changes))
        block = model.block0
        jacobian = torch.autograd.functional.jacobian(block, x).view(2, 4, 2, 4)
        return jacobian.abs().amax((1, 3)) > 1e-6

    alone = torch.eye(2).bool()
    assert bool(reach("full").all())
    assert bool(reach("kron", kron_dim=4).all())
    assert torch.equal(reach("identity"), alone)
    # The norm over all tokens before the mixing is where they still meet.
    assert torch.equal(reach("kron_official", kron_dim=2, mix_norm="none"), alone)


def test_heads_are_what_they_say():
    for head, extra in (("mlp", 2 * (8 * 16 + 16 + 16 + 1)), ("flatten", 2 * 9)):
        model = RankElastor(SCHEMA, replace(PAPER, head=head))
        assert count(model.heads) == extra
    one = replace(SCHEMA, labels=(Label("click"),))
    model, seen = RankElastor(one, replace(PAPER, head="noparam_mean")), {}
    model.head_in.register_forward_hook(lambda *a: seen.update(x=a[-1]))
    score = model.score(some_rows(7, one))["click"]
    torch.testing.assert_close(score, seen["x"].mean(1))
    assert count(model.heads) == 0
    assert model.mean.weight is None


def test_groupings_are_those_of_the_code():
    batch = some_rows(3)
    x = RankElastor(SCHEMA, PAPER).embeddings.fields(batch)  # [3, 4, 3]
    plain = RankElastor(SCHEMA, replace(PAPER, grouping="none", token_dim=6))
    assert torch.equal(plain.grouping(x), x.reshape(3, 2, 6))
    shared = RankElastor(SCHEMA, replace(PAPER, grouping="matrix")).grouping
    twins = torch.cat([x[:, :2], x[:, :2]], dim=1)
    assert torch.equal(shared(twins)[:, 0], shared(twins)[:, 1])
    vector = RankElastor(SCHEMA, replace(PAPER, grouping="vector", num_tokens=5)).grouping
    assert vector(x).shape == (3, 5, 4)
    normed = RankElastor(SCHEMA, OFFICIAL).token_norm(1e-3 * x)
    torch.testing.assert_close(normed.square().mean((1, 2)), torch.ones(3), rtol=1e-4, atol=0)


def test_full_mixing_finds_a_cross_of_tokens_that_the_mean_of_separate_tokens_cannot():
    """Two fields in two tokens; the label is the product of their signs."""
    schema, seen, _ = planted(2, 2048, torch.Generator().manual_seed(0))
    _, unseen, truth = planted(2, 4096, torch.Generator().manual_seed(1))
    label = unseen.labels["click"]
    best = area_under_curve(truth, label)
    for mix, low, high in (("full", best - 0.03, best + 0.02), ("identity", 0.4, 0.58)):
        torch.manual_seed(0)
        config = RankElastorConfig.paper(
            embedding_dim=4, embedding_std=0.3, num_tokens=3, token_dim=4, head="noparam_mean",
            num_blocks=1, mix=mix,
        )  # fmt: skip
        model = RankElastor(schema, config)
        fit(model, seen, steps=80)
        reached = area_under_curve(model.score(unseen)["click"].detach(), label)
        assert low <= reached <= high, f"{mix}: {reached:.3f}, best {best:.3f}"


def test_the_published_sizes_build_and_outnumber_the_baseline_by_their_mixing():
    names = [f"c{i}" for i in range(39)]
    criteo = Schema(
        tables=tuple(Table(n, 5) for n in names),
        fields=tuple(Categorical(n, n) for n in names),
        labels=(Label("click"),),
    )
    with torch.device("meta"):
        paper = RankElastor(criteo, RankElastorConfig.paper())
        official = RankElastor(criteo, RankElastorConfig.official())
        small = RankElastor(
            criteo, RankElastorConfig.official(embedding_dim=10, num_tokens=15, token_dim=26)
        )
        RankMixer(criteo, RankMixerConfig.rankelastor_baseline())
    assert count(paper.block1.mixing) == 390**2
    assert count(official.block0.mixing) == 780**2 + 780
    assert count(small.block0.mixing) == 390**2 + 390


@pytest.mark.parametrize(
    "changes",
    [
        {"mix": "identity", "mix_residual": False},
        {"mix": "block_transpose", "mix_bias": False},
        {"mix": "full_lowrank", "mix_init": "small"},
        {"kron_dim": 4},
        {"mix_rank": 4},
        {"ffn": "relu", "ffn_inner_skip": False},
        {"grouping": "chunk", "token_hidden": (3,)},
    ],
)
def test_a_setting_without_effect_is_refused(changes):
    with pytest.raises(ConfigError, match="impossible"):
        RankElastorConfig(**changes)


def test_the_table_of_idle_settings_names_settings():
    from fullrank.models.rankelastor import _ONLY_WITH

    known = {f.name for f in fields(RankElastorConfig)}
    assert {n for switch, _, names in _ONLY_WITH for n in (switch, *names)} <= known


@pytest.mark.parametrize(
    ("changes", "suggestions"),
    [
        ({"num_tokens": 5}, ("4 or 6", "5 or 10", "vector")),
        ({"num_tokens": 7, "grouping": "chunk", "embedding_dim": 12}, ("6 or 8",)),
        ({"num_tokens": 8, "embedding_dim": 3}, ("embedding_dim to 2 or 4",)),
        ({"grouping": "none", "embedding_dim": 3}, ("token_dim to 6",)),
        ({"mix": "block_transpose", "num_tokens": 3}, ("3 or 6",)),
        ({"mix": "kron", "kron_dim": 3}, ("2 or 4",)),
        ({"mix": "kron", "mix_init": "block_transpose"}, ("mix=full",)),
    ],
)
def test_impossible_sizes_are_refused_with_the_nearest_possible_ones(changes, suggestions):
    sizes = {**SIZES, "embedding_dim": 6, "token_dim": 4}
    with pytest.raises(ConfigError) as refused:
        RankElastor(SCHEMA, RankElastorConfig.paper(**{**sizes, **changes}))
    assert all(text in refused.value.fix for text in suggestions), refused.value.fix
