"""TokenFormer: who reaches whom, what is dropped, counted, hidden and refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fullrank.batch import Columns, Jagged
from fullrank.config import from_dict, to_dict
from fullrank.errors import ConfigError
from fullrank.models.tokenformer import TokenFormer, TokenFormerConfig
from fullrank.nn.interaction_block import Sight
from fullrank.schema import Bag, Categorical, Label, Numeric, Schema, Sequence, Table
from fullrank.testing import area_under_curve, fit, random_batch

T = 6
SCHEMA = Schema(
    tables=(Table("items", 9), Table("cats", 5), Table("ages", 4), Table("tags", 4),
            Table("liked", 4)),
    fields=(
        Categorical("age", "ages", "user"),
        Categorical("item", "items", "item"),
        Numeric("hour"),
        Categorical("cat", "cats", "item"),
        Bag("interests", "tags", "user", max_length=3),
        Numeric("price", "item"),
    ),
    sequences=(
        Sequence("past", (("item", "items"), ("cat", "cats"), ("liked", "liked"), ("time", None)),
                 max_length=T),
    ),
    labels=(Label("click"),),
)  # fmt: skip
STATIC, TARGETS = ("age", "hour", "interests"), ("item", "cat", "price")
M, K = 3, 3
SMALL = TokenFormerConfig(dim=8, num_heads=2, embedding_std=0.5, windows=(6, 5), dropout=0.0)
BARE = {"schedule": "4F", "windows": ()}


def build(config=SMALL, schema=SCHEMA):
    """A model in float64 whose maps are all large enough to matter."""
    torch.manual_seed(0)
    model = TokenFormer(schema, config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def rows(count=6, seed=0, **kind):
    batch = random_batch(SCHEMA, count, torch.Generator().manual_seed(seed), **kind)
    numeric = Columns(batch.numeric.names, batch.numeric.block.double())
    return replace(batch, numeric=numeric, weight=batch.weight.double())


def seen_by(query, key, *, fields, full, window, discard, sep1, both_ways):
    """The rule of the paper, for one pair of places."""
    gone = fields + sep1 if discard else 0
    if both_ways and max(query, key) < fields:
        return full or abs(query - key) < (window or 99)
    if key > query or (query >= gone and key < gone and not full):
        return False
    return full or not window or query - key < window


def masked_twin(model, stream, row):
    """One row without padding, through every layer with everything present and a mask."""
    c, keep = model.config, stream.valid[row]
    x, positions = stream.x[row : row + 1, keep], stream.positions[row : row + 1, keep]
    fields, n, windows, states = len(model.static), x.shape[1], iter(c.windows), []
    rotary = model.bfts.rotary
    for layer, block in zip(c.layers, model.blocks(), strict=True):
        rule = {"fields": fields, "full": layer == "F", "sep1": c.discard_sep1,
                "window": None if layer == "F" else next(windows),
                "discard": c.discard_static, "both_ways": c.static_bidirectional}  # fmt: skip
        mask = torch.tensor([[seen_by(i, j, **rule) for j in range(n)] for i in range(n)])

        def attend(q, k, v, mask=mask):
            scores = (q @ k.transpose(2, 3) * q.shape[-1] ** -0.5).masked_fill(~mask, -torch.inf)
            states.append(scores.softmax(-1)[0].mean(0))  # [n, n], mean over heads
            return scores.softmax(-1) @ v

        angles = rotary.angles(positions, torch.float64) if rotary else None
        x = block(x, Sight(attend, angles, slice(0, 0), keep[None, :0]))
    return x[0], states


FORMS = {
    "2F2S": {},
    "4F": BARE,
    "4S": {"schedule": "4S", "windows": (9, 7, 6, 5)},
    "2S2F": {"schedule": "2S2F"},
    "1F3S, aware": {"schedule": "1F3S", "windows": (5, 7, 6), "stream": "action_aware"},
    "growing": {"windows": (5, 9), "discard_sep1": True},
    "FSFS": {"schedule": "FSFS", "discard_sep1": True},
    "kept": {"discard_static": False, "static_bidirectional": True},
    "no windows": {"windows": (0, 0), "static_bidirectional": True},
    "learned": {"positions": "learned", "readout": "decision_token", "windows": (6, 6)},
    "alone": {"use_static": False, "target_pos": "stream_len_plus_1"},
}


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_u3_u8_dropped_tokens_and_padding_change_nothing_beside_a_mask_without_padding(form):
    model, batch = build(replace(SMALL, **FORMS[form])), rows()
    stream = model.stream(batch, T)
    end, shares = model.bfts.static_share(model.blocks(), stream)
    sizes, expected = [], torch.zeros(len(shares), dtype=torch.float64)
    for row in range(len(batch)):
        x, attention = masked_twin(model, stream, row)
        kept = end.x[row][end.valid[row]]
        torch.testing.assert_close(kept, x[len(x) - len(kept) :], rtol=0, atol=1e-6)
        asked = [i for i in range(len(model.static) + 1, len(x)) if i != len(x) - model.tokens.tail]
        asked = [i for i in asked if i < len(x) - (model.config.readout == "decision_token")]
        for layer, share in enumerate(attention):
            expected[layer] += share[asked, : len(model.static)].sum()
        sizes.append(len(asked))
    torch.testing.assert_close(shares.double(), expected / sum(sizes), rtol=0, atol=1e-6)
    assert not end.x[~end.valid & ~end.separator].any()


@torch.no_grad()
@pytest.mark.parametrize("form", ["2F2S", "2S2F", "1F3S, aware", "kept"])
def test_u8_neither_longer_padding_nor_company_nor_groups_by_length_change_a_row(form):
    model, batch = build(replace(SMALL, **FORMS[form])), rows(16)
    together = model.score(batch)["click"]
    for row in range(4):
        alone = batch.rows(torch.tensor([row]))
        kept = max(1, int(alone.sequences["past"].lengths().clamp(max=T)))
        stream = model.bfts(model.blocks(), model.stream(alone, kept))  # no padding at all
        torch.testing.assert_close(model._judge(stream)[0, 0], together[row], rtol=0, atol=1e-9)
    settled = model(batch)["click"]
    torch.testing.assert_close(model.train()(batch)["click"], settled, rtol=0, atol=1e-6)


@torch.no_grad()
def test_u4_fields_have_no_order_where_they_see_each_other_both_ways():
    for both, same in ((True, True), (False, False)):
        model = build(replace(SMALL, static_bidirectional=both))
        stream = model.stream(rows(), T)
        order = torch.tensor([2, 0, 1, *range(M, stream.x.shape[1])])
        turned = stream._replace(x=stream.x[:, order], valid=stream.valid)
        ends = [model.bfts(model.blocks(), s).x[:, -1] for s in (stream, turned)]
        assert torch.allclose(*ends, atol=1e-9) == same


@torch.no_grad()
def test_u4_behaviours_and_targets_see_distances_fields_see_places():
    model = build(replace(SMALL, **BARE))
    stream = model.stream(rows(2, seed=3), T)
    moved = stream._replace(positions=stream.positions + 5 * (stream.positions > 0))
    found = []
    for s in (stream, moved):
        angles = model.bfts.rotary.angles(s.positions, torch.float64)
        sight = Sight(lambda *_: None, angles, slice(0, 0), s.events)
        everything = torch.ones(2, 1, s.x.shape[1], s.x.shape[1], dtype=torch.bool)
        found.append(model.block0.attention.weights(s.x, sight, everything).log())
    behind = stream.positions[0] > 0  # behaviours, SEP2 and targets
    logs = [w[0][:, behind] for w in found]
    between_ = [w[..., behind] - w[..., behind][..., :1] for w in logs]
    torch.testing.assert_close(*between_, rtol=0, atol=1e-9)
    fields = [w[..., :M] - w[..., behind][..., :1] for w in logs]
    assert not torch.allclose(*fields, atol=1e-3)


def reach(config):
    """Which tokens of X_0 move the logit of a row with a full history."""
    model, batch = build(config), rows(32)
    full = batch.sequences["past"].lengths() >= T
    stream = model.stream(batch.rows(full.nonzero().squeeze(1)[:2]), T)
    x = stream.x.detach().requires_grad_()
    model._judge(model.bfts(model.blocks(), stream._replace(x=x))).sum().backward()
    return (x.grad.abs().amax((0, 2)) > 1e-9).tolist(), model


def test_u5_fields_act_only_below_and_the_oldest_event_only_through_full_layers():
    fields, oldest = slice(0, M), M + 1
    touched, model = reach(replace(SMALL, windows=(5, 5)))
    assert all(touched)
    lengths = []
    for block in model.blocks():
        block.register_forward_pre_hook(lambda _, inputs: lengths.append(inputs[0].shape[1]))
    model.score(rows())
    N = M + 1 + T + 1 + K
    assert lengths == [N, N, N - M, N - M]
    # From the last target back to the oldest of six events are 9 steps; a window of 5 makes 4.
    touched, _ = reach(replace(SMALL, schedule="2S", windows=(5, 5)))
    assert not any(touched[fields])
    assert not touched[oldest]
    assert touched[oldest + 1]
    touched, _ = reach(replace(SMALL, schedule="3S", windows=(5, 5, 5)))
    assert touched[oldest]
    assert not any(touched[fields])


def test_u6_parameters_are_those_of_the_formula():
    D, r, L = 8, 2, 4
    model = TokenFormer(SCHEMA, SMALL)
    rows_ = (9 + 5 + 4 + 4 + 4) * D
    embedded = rows_ + 2 * 2 * D + D  # two numbers, one learned vector for an empty bag
    events = (3 * D) * D + D  # item, category and feedback to one token
    head = D + (D * D + D) + (D + 1)
    blocks = L * (5 * D**2 + 3 * r * D**2 + 2 * D)
    count = sum(p.numel() for p in model.parameters())
    assert count == embedded + events + 2 * D + blocks + head


def test_a10_has_the_parameters_of_a3():
    counts = {}
    for name in ("A0", "A3", "A10"):
        model = TokenFormer(SCHEMA, TokenFormerConfig.variant(name, dim=48, num_heads=4))
        counts[name] = sum(p.numel() for p in model.parameters())
    assert abs(counts["A10"] - counts["A3"]) <= 4 * 3 * 48
    assert counts["A0"] < counts["A3"]


def past_with(batch, column, values):
    past = batch.sequences["past"]
    changed = Jagged({**past.values, column: values}, past.offsets)
    return replace(batch, sequences={"past": changed})


@pytest.mark.parametrize("stream", ["plain", "action_aware"])
@torch.no_grad()
def test_u7_feedback_is_predicted_from_what_came_before_it(stream):
    model, batch = build(replace(SMALL, regime="user", stream=stream)), rows(8)
    batch = replace(batch, sequences={"past": batch.sequences["past"].newest(T)})
    liked, offsets = batch.sequences["past"].values["liked"], batch.sequences["past"].offsets
    before = model.feedback_logits(batch)["liked"]
    assert before.shape == (len(liked), 3)
    for row in (r for r in range(8) if int(offsets[r + 1] - offsets[r]) > 2):
        t = int(offsets[row]) + 1
        other = liked.clone()
        other[t : offsets[row + 1]] = (other[t : offsets[row + 1]] + 1) % 4
        moved = (model.feedback_logits(past_with(batch, "liked", other))["liked"] - before).abs()
        assert not moved[: t + 1].any()
        assert not moved[offsets[row + 1] :].any()
        later = moved[t + 1 : offsets[row + 1]]
        assert bool(later.any()) == (stream == "action_aware")
        items = batch.sequences["past"].values["item"].clone()
        items[t + 1 :] = (items[t + 1 :] + 1) % 9
        turned = model.feedback_logits(past_with(batch, "item", items))["liked"]
        assert torch.equal(turned[: t + 1], before[: t + 1])


@torch.no_grad()
def test_user_centric_loss_is_the_mean_over_known_feedback():
    model, batch = build(replace(SMALL, regime="user", stream="action_aware")), rows(12)
    logits = model.feedback_logits(batch)["liked"].log_softmax(-1)
    past = batch.sequences["past"].newest(T)
    total = weights = 0.0
    spans = zip(past.offsets[:-1].tolist(), past.offsets[1:].tolist(), strict=True)
    for row, (start, end) in enumerate(spans):
        for s in range(start, end):
            value = int(past.values["liked"][s])
            if value > 0:
                total -= float(batch.weight[row] * logits[s, value - 1])
                weights += float(batch.weight[row])
    for mode in (False, True):
        losses = model.train(mode)(batch)
        assert list(losses) == ["click", "past.liked"]
        assert float(losses["past.liked"]) == pytest.approx(total / weights, abs=1e-9)
    unknown = past_with(batch, "liked", torch.zeros_like(batch.sequences["past"].values["liked"]))
    assert float(model(unknown)["past.liked"]) == 0.0


@pytest.mark.parametrize("stream", ["plain", "action_aware"])
@pytest.mark.parametrize("readout", ["last_target", "decision_token", "mean_targets"])
def test_empty_histories_are_answered_and_trained_on(stream, readout):
    config = replace(SMALL, stream=stream, readout=readout, windows=(6, 6), regime="user")
    model, batch = build(config), rows(4, empty=True)
    assert model.score(batch)["click"].isfinite().all()
    losses = model.train()(batch)
    torch.stack(list(losses.values())).sum().backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(g.isfinite().all() for g in grads)


def test_fields_of_the_candidate_are_targets_and_the_rest_is_static():
    model = build()
    assert (model.static, model.targets) == (STATIC, TARGETS)
    assert model.num_tokens == M + 1 + T + 1 + K
    alone = build(replace(SMALL, use_static=False))
    assert (alone.static, alone.targets) == ((), TARGETS)
    assert [t.name for t in alone.embeddings.schema.tables] == ["items", "cats", "liked"]
    asked = build(replace(SMALL, regime="user"))
    assert "liked" not in {t.name for t in asked.embeddings.schema.tables}


def test_attention_to_fields_is_gone_in_the_top_layers_and_stays_without_the_schedule():
    batch = rows(8)
    plain = build(replace(SMALL, **BARE, nlir=False)).attention_to_static(batch)
    assert (plain > 0).all()
    shares = build().attention_to_static(batch)
    assert (shares[:2] > 0).all()
    assert shares[2:].tolist() == [0.0, 0.0]


def test_variants_are_those_of_the_paper_and_survive_json():
    labels = {}
    for name in (f"A{i}" for i in range(12)):
        config = TokenFormerConfig.variant(name)
        assert from_dict(TokenFormerConfig, to_dict(config)) == config
        labels[name] = config.label
    assert labels == {
        "A0": "4F", "A1": "4F + NLIR", "A2": "2F2S 32,16", "A3": "2F2S 32,16 + NLIR",
        "A4": "4S 32,27,21,16 + NLIR", "A5": "2S2F 32,16 + NLIR", "A6": "3F1S 16 + NLIR",
        "A7": "2F2S 16,32 + NLIR", "A8": "2F2S all,all + NLIR", "A9": "4F, no fields",
        "A10": "4F", "A11": "2F2S 32,16 + NLIR, learned positions",
    }  # fmt: skip
    assert TokenFormerConfig.variant("A3") == TokenFormerConfig()
    assert TokenFormerConfig.variant("A6", schedule="1F3S").windows == (32, 24, 16)
    assert TokenFormerConfig.variant("A9", nlir=True).nlir
    assert replace(SMALL, schedule="FFSS").layers == SMALL.layers == "FFSS"


@pytest.mark.parametrize(
    ("change", "where", "fix"),
    [
        ({"windows": (6, 4)}, "windows", "(6, 5)"),
        ({"windows": (3, 9)}, "windows", "(5, 9)"),
        ({"readout": "decision_token"}, "windows", "(6, 6)"),
        ({"windows": (6,)}, "windows", "(6, 6)"),
        ({"schedule": "4F"}, "windows", "()"),
        ({"schedule": "2F2X"}, "schedule", "2F2S"),
        ({"schedule": "0F"}, "schedule", "2F2S"),
        ({"nlir": False, "gate_act": "tanh"}, "gate_act", "nlir=True"),
        ({"gate_source": "attn_out", "gate_input": "normed"}, "gate_input", "gate_source=input"),
        ({**BARE, "discard_static": False}, "discard_static", "leave"),
        ({**BARE, "discard_sep1": True}, "discard_sep1", "leave"),
        ({"discard_static": False, "discard_sep1": True}, "discard_sep1", "discard_static=True"),
        ({"schedule": "2S", "static_bidirectional": True}, "static_bidirectional", "leave"),
        ({"positions": "learned", "target_pos": "stream_len_plus_1"}, "target_pos", "rope"),
        ({"num_heads": 3}, "num_heads", "6"),
        ({"length": 7}, "past", "6"),
    ],
)
def test_what_cannot_work_or_does_nothing_is_refused_with_the_nearest_value(change, where, fix):
    with pytest.raises(ConfigError) as refused:
        TokenFormer(SCHEMA, replace(SMALL, **change))
    assert where in refused.value.where
    assert fix in refused.value.fix


@pytest.mark.parametrize("change", [{"stream": "action_aware"}, {"regime": "user"}])
def test_feedback_that_the_history_does_not_hold_is_refused(change):
    past = Sequence("past", (("item", "items"), ("cat", "cats")), max_length=T)
    with pytest.raises(ConfigError, match=r"(?s)a column that says what the user did.*stream"):
        TokenFormer(replace(SCHEMA, sequences=(past,)), replace(SMALL, **change))


def test_an_unknown_variant_is_refused():
    with pytest.raises(ConfigError, match="A12"):
        TokenFormerConfig.variant("A12")


def recalled(count, seed):
    """Click: the item is among the two or three events of the past; all items are random."""
    g = torch.Generator().manual_seed(seed)
    batch = random_batch(SCHEMA, count, g)
    lengths = torch.randint(2, 4, (count,), generator=g)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    size = int(offsets[-1])
    values = {
        "item": torch.randint(1, 5, (size,), generator=g, dtype=torch.int32),
        "cat": torch.ones(size, dtype=torch.int32),
        "liked": torch.ones(size, dtype=torch.int32),
        "time": torch.zeros(size, dtype=torch.int64),
    }
    target = torch.randint(1, 5, (count,), generator=g, dtype=torch.int32)
    row = torch.repeat_interleave(torch.arange(count), lengths)
    match = (values["item"] == target[row]).float()
    click = (torch.zeros(count).index_add_(0, row, match) > 0).float()
    block = batch.categorical.block.clone()
    block[:, batch.categorical.names.index("item")] = target
    return replace(
        batch,
        categorical=Columns(batch.categorical.names, block),
        sequences={"past": Jagged(values, offsets)},
        labels=Columns(("click",), click[:, None]),
        observed=Columns(("click",), torch.ones(count, 1, dtype=torch.bool)),
        weight=torch.ones(count),
    )


def test_finds_what_only_the_history_and_the_target_together_say():
    torch.manual_seed(0)
    seen, unseen = recalled(384, 1), recalled(512, 2)
    config = replace(SMALL, dim=16, schedule="FS", windows=(9,), embedding_std=0.1)
    model = TokenFormer(SCHEMA, config)
    fit(model, seen, steps=60, learning_rate=0.02)
    label = unseen.labels["click"]
    assert area_under_curve(model.score(unseen)["click"].detach(), label) > 0.85
    past = unseen.sequences["past"]
    nothing = Jagged({k: v[:0] for k, v in past.values.items()}, torch.zeros_like(past.offsets))
    blind = model.score(replace(unseen, sequences={"past": nothing}))["click"].detach()
    assert 0.4 < area_under_curve(blind, label) < 0.6
