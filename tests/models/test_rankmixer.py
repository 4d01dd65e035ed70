"""RankMixer: what reaches what, what is counted, and that mixing finds a cross between tokens."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from fullrank.batch import Batch, Columns
from fullrank.config import from_dict, to_dict
from fullrank.errors import ConfigError
from fullrank.models.rankmixer import RankMixer, RankMixerConfig
from fullrank.nn.mixer import MixerBlock
from fullrank.nn.mixing import MultiheadMixing
from fullrank.nn.token_ffn import PerTokenFFN
from fullrank.schema import Categorical, Label, Schema, Table

FIELDS, VALUES = 4, 6
SCHEMA = Schema(
    tables=tuple(Table(f"t{i}", VALUES) for i in range(FIELDS)),
    fields=tuple(Categorical(f"f{i}", f"t{i}") for i in range(FIELDS)),
    labels=(Label("click"), Label("buy")),
)
SMALL = RankMixerConfig(
    embedding_dim=3, embedding_std=0.5, num_tokens=4, token_dim=8, expansion=2.0, head_hidden=(6,)
)


def make_batch(ids, labels=None):
    rows = len(ids)
    labels = torch.randint(0, 2, (rows, 2)).float() if labels is None else labels
    return Batch(
        categorical=Columns(tuple(f"f{i}" for i in range(FIELDS)), ids.int()),
        numeric=Columns.none(rows, torch.float32),
        labels=Columns(("click", "buy"), labels),
        observed=Columns(("click", "buy"), torch.ones(rows, 2, dtype=torch.bool)),
        weight=torch.ones(rows),
        group=torch.zeros(rows, dtype=torch.int64),
        time=torch.zeros(rows, dtype=torch.int64),
    )


def some_rows(rows, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return make_batch(torch.randint(0, VALUES, (rows, FIELDS), generator=draw))


def test_u3_parameters_are_those_of_the_paper():
    T, D, k = 4, 8, 2
    model = RankMixer(SCHEMA, SMALL)
    block = sum(p.numel() for p in model.blocks()[0].parameters())
    assert block == T * (2 * k * D**2 + k * D + D) + 4 * D
    tables, tokens = FIELDS * VALUES * 3, T * (3 * D + D)
    tower = D * 6 + 6 + 6 + 1
    assert sum(p.numel() for p in model.parameters()) == tables + tokens + 2 * block + 2 * tower


def test_shared_wide_matches_the_weights_of_per_token():
    def weights(config):
        feed_forward = RankMixer(SCHEMA, config).blocks()[0].feed_forward
        return sum(p.numel() for name, p in feed_forward.named_parameters() if "weight" in name)

    own, wide, same_k = (
        weights(replace(SMALL, ffn=f)) for f in ("per_token", "shared_wide", "shared")
    )
    assert own == wide == 4 * same_k


@pytest.mark.parametrize("norm", ["post", "pre", "none", "hybrid"])
def test_u5_one_block_connects_all_tokens_and_without_mixing_none(norm):
    torch.manual_seed(0)
    config, x = replace(SMALL, norm=norm, num_blocks=1), torch.randn(1, 4, 8)

    def reach(config):
        block = RankMixer(SCHEMA, config).blocks()[0]
        jacobian = torch.autograd.functional.jacobian(lambda x: block(x)[0], x).view(4, 8, 4, 8)
        return jacobian.abs().amax((1, 3)) > 1e-6  # [out token, in token]

    assert bool(reach(config).all())
    assert torch.equal(reach(replace(config, mix="none")), torch.eye(4).bool())


@pytest.mark.parametrize("residuals", [(True, True), (False, True), (True, False)])
def test_u7_norm_placements_are_those_of_the_paper(residuals):
    """Each placement written out, with the parts of the block itself."""
    torch.manual_seed(0)
    x, (keep_mix, keep_ffn) = torch.randn(5, 4, 8), residuals

    def block(norm):
        made = MixerBlock(
            8, MultiheadMixing(4, 8), PerTokenFFN(4, 8, (16,)), norm=norm, residuals=residuals
        )
        made.feed_forward.load_state_dict(ffn.state_dict())
        return made

    ffn, mix = PerTokenFFN(4, 8, (16,)), MultiheadMixing(4, 8)
    ln = lambda y: nn.functional.layer_norm(y, (8,))  # noqa: E731
    s = ln(mix(x) + keep_mix * x)
    torch.testing.assert_close(block("post")(x)[0], ln(ffn(s) + keep_ffn * s))
    s = mix(ln(x)) + keep_mix * x
    torch.testing.assert_close(block("pre")(x)[0], ffn(ln(s)) + keep_ffn * s)
    s = mix(x) + keep_mix * x
    torch.testing.assert_close(block("none")(x)[0], ffn(s) + keep_ffn * s)
    s = nn.functional.rms_norm(ln(s), (8,))
    torch.testing.assert_close(block("hybrid")(x)[0], ffn(s) + keep_ffn * s)


def test_u7_without_their_norms_post_and_pre_are_equal():
    torch.manual_seed(0)
    post = RankMixer(SCHEMA, SMALL)
    pre = RankMixer(SCHEMA, replace(SMALL, norm="pre"))
    wanted = {n: p for n, p in post.state_dict().items() if "norm" not in n}
    pre.load_state_dict(wanted, strict=False)
    batch = some_rows(5)
    assert not torch.allclose(post.score(batch)["click"], pre.score(batch)["click"])
    for model in (post, pre):
        for block in model.blocks():
            for name, module in list(block.named_children()):
                if isinstance(module, nn.LayerNorm):
                    setattr(block, name, nn.Identity())
    assert torch.equal(post.score(batch)["click"], pre.score(batch)["click"])


MOE = replace(SMALL, moe="relu_dtsi", num_experts=4)


def test_u6_scores_ignore_the_training_router_in_training_too():
    model, batch = RankMixer(SCHEMA, MOE), some_rows(5)
    for training in (True, False):
        model.train(training)
        before = model.score(batch)["click"]
        for block in model.blocks():
            nn.init.normal_(block.feed_forward.routers["h_train"].weight)
        assert torch.equal(model.score(batch)["click"], before)


@pytest.mark.parametrize("mode", ["dual_forward", "mixed_gate"])
def test_both_routers_learn_in_every_step(mode):
    model = RankMixer(SCHEMA, replace(MOE, dtsi_mode=mode))
    torch.stack(list(model(some_rows(8)).values())).sum().backward()
    for name in ("h_infer", "h_train"):
        for block in model.blocks():
            assert block.feed_forward.routers[name].weight.grad.abs().sum() > 0


def test_dual_forward_is_the_mean_of_both_losses_and_alternate_one_of_them():
    torch.manual_seed(0)
    model, batch = RankMixer(SCHEMA, MOE), some_rows(8)
    for block in model.blocks():
        nn.init.normal_(block.feed_forward.routers["h_train"].weight)

    def losses(mode):
        model.config = replace(MOE, dtsi_mode=mode)
        return round(model(batch)["click"].item(), 6)

    either = {losses("alternate") for _ in range(20)}
    assert len(either) == 2
    assert losses("dual_forward") == pytest.approx(sum(either) / 2, abs=2e-6)
    assert losses("mixed_gate") not in either


def test_alternate_draws_while_training_only():
    model, batch = RankMixer(SCHEMA, replace(MOE, dtsi_mode="alternate")).eval(), some_rows(4)
    before = torch.get_rng_state()
    model(batch)
    assert torch.equal(torch.get_rng_state(), before)
    model.train()(batch)
    assert not torch.equal(torch.get_rng_state(), before)


def test_the_penalty_is_one_term_over_all_blocks():
    model, batch = RankMixer(SCHEMA, MOE).eval(), some_rows(8)
    for block in model.blocks():
        block.feed_forward.l1_weight.fill_(0.01)
    gates = model._run(model._tokens(batch), "h_infer")[1]
    expected = sum(0.01 * g.sum().item() / 8 for g in gates)
    assert model(batch)["moe_penalty"].item() == pytest.approx(expected, rel=1e-5)
    assert "moe_penalty" not in RankMixer(SCHEMA, SMALL)(batch)


def test_taps_see_the_contract_and_experts_only_while_someone_looks():
    model, seen = RankMixer(SCHEMA, MOE).eval(), {}
    names = ["embed", "tokens", "head_in"]
    names += [f"block{i}.{n}" for i in (0, 1) for n in ("mix_branch", "mix", "ffn_branch", "ffn")]
    for name in [*names, "block1.experts"]:
        tap = model.get_submodule(name)
        tap.register_forward_hook(lambda m, _, x, name=name: seen.update({name: (m.axes, x.shape)}))
    model.score(some_rows(5))
    assert set(seen) == {*names, "block1.experts"}
    assert seen["embed"] == ("B F D", (5, 4, 3))
    assert seen["block1.ffn_branch"] == ("B N D", (5, 4, 8))
    assert seen["block1.experts"] == ("B E D", (5, 4, 8))
    assert seen["head_in"] == ("B D", (5, 8))


def test_the_class_token_is_the_first_and_is_what_the_head_reads():
    model, seen = RankMixer(SCHEMA, replace(SMALL, pool="cls")), {}
    model.tokens.register_forward_hook(lambda m, _, x: seen.update(tokens=x))
    model.head_in.register_forward_hook(lambda m, _, x: seen.update(head=x))
    model.block1.ffn.register_forward_hook(lambda m, _, x: seen.update(last=x))
    model.score(some_rows(5))
    assert seen["tokens"].shape == (5, 4, 8)
    assert torch.equal(seen["tokens"][:, 0], model.class_token.expand(5, 1, 8)[:, 0])
    assert torch.equal(seen["head"], seen["last"][:, 0])


def test_the_rankelastor_preset_is_what_they_publish():
    model = RankMixer(SCHEMA, RankMixerConfig.rankelastor_baseline(4, 8, (10, 10)))
    widths = [layer.weight.shape[1:] for layer in model.blocks()[0].feed_forward.layers]
    assert [tuple(w) for w in widths] == [(8, 10), (10, 10), (10, 8)]
    assert model.towers[0][1].in_features == 2 * 4 * 8
    assert isinstance(model.token_norm, nn.RMSNorm)
    assert torch.isfinite(model(some_rows(3))["click"])
    default = RankMixerConfig.rankelastor_baseline()
    assert (default.num_tokens, default.token_dim, default.ffn_hidden) == (26, 26, (200, 200))


@pytest.mark.parametrize(
    ("change", "where", "fix"),
    [
        ({"token_dim": 10}, "mixing", "8 or 12"),
        ({"num_tokens": 13}, "num_tokens", "12"),
        ({"grouping": "field", "num_tokens": 2}, "num_tokens", "num_tokens to 4"),
        ({"groups": (("f0",),)}, "groups", "grouping=group"),
        ({"split_seed": 1}, "split_seed", "grouping=random"),
        ({"token_hidden": (5,)}, "token_hidden", "grouping=shared_proj"),
        ({"mix": "none", "mix_pad": True}, "mix_pad", "mix=multihead"),
        ({"mix": "none", "residual_mix": False}, "residual_mix", "mix=multihead"),
        ({"rho_target": 0.5}, "rho_target", "moe=relu_dtsi"),
        ({"num_experts": 8}, "num_experts", "moe=relu_dtsi"),
        ({"moe": "relu_single", "dtsi_mode": "alternate"}, "dtsi_mode", "moe=relu_dtsi"),
        ({"moe": "relu_single", "ffn": "shared"}, "ffn", "moe=off"),
        ({"moe": "topk_softmax", "rho_target": 0.1}, "target_share", "0.25"),
        ({"num_tokens": 1, "pool": "cls"}, "num_tokens", "num_tokens to 2"),
    ],
)
def test_what_cannot_work_or_does_nothing_is_refused_with_the_nearest_value(change, where, fix):
    with pytest.raises(ConfigError) as refused:
        RankMixer(SCHEMA, replace(SMALL, **change))
    assert where in refused.value.where
    assert fix in refused.value.fix


def test_configs_survive_json():
    for config in (SMALL, RankMixerConfig.tiny(), RankMixerConfig.rankelastor_baseline()):
        assert from_dict(RankMixerConfig, to_dict(config)) == config


def planted(rows, seed):
    """Click is the parity of two fields that lie in different tokens: neither tells alone."""
    ids = torch.randint(0, VALUES, (rows, FIELDS), generator=torch.Generator().manual_seed(seed))
    answer = ((ids[:, 0] + ids[:, 3]) % 2).float()
    return make_batch(ids, torch.stack([answer, answer], dim=1))


def accuracy(config, steps):
    torch.manual_seed(0)
    model, train, test = RankMixer(SCHEMA, config), planted(1024, 1), planted(512, 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for step in range(steps):
        part = train.rows(torch.arange(step % 4 * 256, step % 4 * 256 + 256))
        optimizer.zero_grad()
        torch.stack(list(model(part).values())).sum().backward()
        optimizer.step()
    guess = model.eval().score(test)["click"] > 0
    return (guess == test.labels["click"].bool()).float().mean().item()


def test_mixing_finds_a_cross_between_tokens_that_no_mixing_cannot():
    """With a linear head on the mean, scores without mixing are sums over tokens: chance."""
    config = replace(SMALL, head_hidden=())
    assert accuracy(config, steps=80) > 0.97
    assert accuracy(replace(config, mix="none"), steps=80) < 0.6


def test_a_deep_tower_can_cross_what_the_blocks_do_not():
    """Control for the test above: it is the linear head that makes no mixing fail."""
    assert accuracy(replace(SMALL, head_hidden=(32,), mix="none"), steps=80) > 0.9
