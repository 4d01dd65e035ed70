"""RankUp: which table, field and task reaches which token, and what every switch leaves alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from fullrank.batch import Batch, Columns
from fullrank.config import from_dict, to_dict
from fullrank.errors import ConfigError, FullrankError
from fullrank.lookup import Lookup, Provenance
from fullrank.models.rankup import RankUp, RankUpConfig
from fullrank.schema import Categorical, Label, Schema, Table
from fullrank.testing import check_law

FIELDS, VALUES = 6, 7
NAMES = tuple(f"f{i}" for i in range(FIELDS))
SIDES = ("user", "item", "user", "item", "context", "context")
SCHEMA = Schema(
    tables=tuple(Table(f"t{i}", VALUES) for i in range(FIELDS)),
    fields=tuple(Categorical(f"f{i}", f"t{i}", side) for i, side in enumerate(SIDES)),
    labels=(Label("click"), Label("buy")),
)
ONE_LABEL = replace(SCHEMA, labels=(Label("click"),))
SMALL = RankUpConfig(
    embedding_dim=3,
    embedding_std=0.5,
    sparse_tokens=3,
    token_dim=12,
    num_blocks=1,
    head_hidden=(5,),
)  # T = 1 + 3 + 2
GROUPS = ("f0", "f4"), ("f1", "f2", "f5"), ("f3",)
BARE = {"global_token": "none", "multi_embedding": "off", "task_tokens": False}
CROSSES = (("f0", "f1"), ("f4", "f0"))


def vectors(user=None, item=None):
    g = torch.Generator().manual_seed(5)
    user = torch.randn(VALUES, 4, generator=g) if user is None else user
    item = torch.randn(VALUES, 4, generator=g) if item is None else item
    source = Provenance("two towers")
    return {"user_vectors": Lookup("t0", user, source), "item_vectors": Lookup("t1", item, source)}


def some_rows(rows, seed=0, labels=("click", "buy")):
    g = torch.Generator().manual_seed(seed)
    return Batch(
        categorical=Columns(NAMES, torch.randint(0, VALUES, (rows, FIELDS), generator=g).int()),
        numeric=Columns.none(rows, torch.float32),
        labels=Columns(labels, torch.randint(0, 2, (rows, len(labels)), generator=g).float()),
        observed=Columns(labels, torch.ones(rows, len(labels), dtype=torch.bool)),
        weight=torch.ones(rows),
        group=torch.zeros(rows, dtype=torch.int64),
        time=torch.zeros(rows, dtype=torch.int64),
    )


def build(config=SMALL, schema=SCHEMA, assets=None, **changes):
    torch.manual_seed(0)
    return RankUp(schema, replace(config, **changes), assets or {})


def total(losses):
    return torch.stack(list(losses.values())).sum()


def seen_by(model, tap, batch):
    seen = []
    handle = model.get_submodule(tap).register_forward_hook(lambda m, _, x: seen.append(x))
    model.score(batch)
    handle.remove()
    return seen[0]


def fields_of_tokens(model):
    """[T_s, F] bool: which field moves which sparse token."""
    x = torch.randn(1, FIELDS, 3)
    jacobian = torch.autograd.functional.jacobian(model.split, x)[0, :, :, 0]
    return jacobian.abs().sum((1, 3)) > 0


@pytest.mark.parametrize("tokens", [1, 2, 4, 5, 6])
def test_u1_random_groups_are_a_partition_of_nearly_equal_size(tokens):
    reached = fields_of_tokens(build(sparse_tokens=tokens, token_dim=None))
    assert reached.sum(0).tolist() == [1] * FIELDS
    sizes = reached.sum(1).tolist()
    assert sizes == [FIELDS // tokens + (i < FIELDS % tokens) for i in range(tokens)]


def test_u1_the_split_is_of_its_seed_and_comes_back_from_the_checkpoint():
    groups = {seed: fields_of_tokens(build(split_seed=seed)).tolist() for seed in range(6)}
    assert groups[3] == fields_of_tokens(build(split_seed=3)).tolist()
    assert len({str(g) for g in groups.values()}) > 1
    saved, other = build(split_seed=1), build(split_seed=2)
    assert not torch.equal(saved.split.order, other.split.order)
    other.load_state_dict(saved.state_dict())
    batch = some_rows(4)
    assert torch.equal(other.eval().score(batch)["buy"], saved.eval().score(batch)["buy"])


def test_u1_the_split_does_not_touch_the_global_state():
    torch.manual_seed(0)
    states = []
    for seed in (1, 2):
        torch.manual_seed(0)
        RankUp(SCHEMA, replace(SMALL, split_seed=seed))
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


def test_u2_random_with_the_schema_order_equals_sequential_to_the_bit():
    random, sequential = build(), build(split_mode="sequential")
    weights = {n: w for n, w in sequential.state_dict().items() if n != "split.order"}
    random.load_state_dict(weights, strict=False)
    batch = some_rows(5)
    assert not torch.equal(random.score(batch)["click"], sequential.score(batch)["click"])
    random.split.order.copy_(torch.arange(FIELDS))
    assert torch.equal(random.score(batch)["click"], sequential.score(batch)["click"])


def test_semantic_groups_reach_their_own_token_only():
    model = build(split_mode="semantic", groups=GROUPS, sparse_tokens=None)
    assert fields_of_tokens(model).tolist() == [[n in g for n in NAMES] for g in GROUPS]


def test_resampling_draws_by_itself_in_training_only_and_goes_on_after_loading():
    model, fields = build(split_resample="per_batch"), torch.randn(4, FIELDS, 3)
    before = torch.get_rng_state()
    first, second = (model.train().split(fields) for _ in range(2))
    assert not torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    third = model.split(fields)
    resumed = build(split_resample="per_batch")
    resumed.load_state_dict(state)
    assert torch.equal(resumed.train().split(fields), third)
    kept = build()
    kept.load_state_dict(state, strict=False)
    assert torch.equal(model.eval().split(fields), kept.split(fields))


def test_u3_tables_of_the_global_token_learn_only_through_it():
    batch = some_rows(16)
    for ablated in (False, True):
        model = build()
        own = model.views.table_set("global_token", model.embeddings)
        assert own is not model.embeddings
        if ablated:
            model.global_token.register_forward_hook(lambda m, _, x: torch.zeros_like(x))
        total(model(batch)).backward()
        assert (own.rows.grad is None) == ablated
        assert model.embeddings.rows.grad.abs().sum() > 0


def test_u3_off_shares_storage_and_on_does_not():
    for multi, shared in (("off", True), ("single_wide", True), ("on", False)):
        model = build(multi_embedding=multi, crosses=CROSSES, token_dim=14)
        sets = [model.views.table_set(r, model.embeddings) for r in ("global_token", "crosses")]
        pointers = {s.rows.data_ptr() for s in (model.embeddings, *sets)}
        assert (len(pointers) == 1) == shared
        assert len(list(nn.Module.parameters(model))) == len(model.state_dict()) - 1  # the order


def test_single_wide_is_multi_embedding_stored_differently():
    """The control of the paper's claim: slices of one wide table are tables of their own."""
    own, wide = build(), build(multi_embedding="single_wide")
    rest = {n: w for n, w in own.state_dict().items() if "rows" not in n}
    wide.load_state_dict(rest, strict=False)
    tables = own.embeddings, own.views.table_set("global_token", own.embeddings)
    with torch.no_grad():
        wide.embeddings.rows.copy_(torch.cat([t.rows for t in tables], dim=1))
    assert sum(p.numel() for p in own.parameters()) == sum(p.numel() for p in wide.parameters())
    batch = some_rows(8)
    optimizers = [torch.optim.Adam(m.parameters(), lr=0.01) for m in (own, wide)]
    for _ in range(3):
        for model, optimizer in zip((own, wide), optimizers, strict=True):
            optimizer.zero_grad()
            total(model(batch)).backward()
            optimizer.step()
    torch.testing.assert_close(own.score(batch)["buy"], wide.score(batch)["buy"])


def test_anchors_limit_the_global_token_to_their_fields():
    for multi in ("off", "on", "single_wide"):
        model = build(multi_embedding=multi, anchors=("f3", "f1"))
        batch = some_rows(1)
        moved = []
        for column in range(FIELDS):
            ids = batch.categorical.block.clone()
            ids[:, column] = (ids[:, column] + 1) % VALUES
            other = replace(batch, categorical=Columns(NAMES, ids))
            a, b = (seen_by(model, "tokens", x)[0, 0] for x in (batch, other))
            moved.append(not torch.equal(a, b))
        assert moved == [False, True, False, True, False, False]


def test_crosses_are_the_products_of_their_pairs():
    model, batch = build(crosses=CROSSES, token_dim=14), some_rows(4)
    e = model.views.table_set("crosses", model.embeddings)
    assert [f.name for f in e.schema.fields] == ["f0", "f1", "f4"]
    f0, f1, f4 = e.fields(batch).unbind(1)
    expected = model.crosses.projection(torch.cat([f0 * f1, f4 * f0], dim=1))
    at = model.token_names.index("crosses")
    torch.testing.assert_close(seen_by(model, "tokens", batch)[:, at], expected)


@pytest.mark.parametrize("cross_norm", [True, False])
def test_u4_the_cross_token_of_pretrained_vectors(cross_norm):
    assets, batch = vectors(), some_rows(5)
    model = build(
        assets=assets, cross="pretrained", cross_norm=cross_norm, dense_token=True, token_dim=16
    )
    users = assets["user_vectors"].values[batch.categorical["f0"].long()]
    items = assets["item_vectors"].values[batch.categorical["f1"].long()]
    dense = seen_by(model, "tokens", batch)[:, model.token_names.index("dense")]
    torch.testing.assert_close(dense, model.dense(torch.cat([users, items], dim=1)))
    if cross_norm:
        users, items = (x / x.square().sum(1, keepdim=True).sqrt() for x in (users, items))
    cross = seen_by(model, "tokens", batch)[:, model.token_names.index("cross")]
    torch.testing.assert_close(cross, model.cross.projection(users * items))
    assert not any("lookup" in name for name, _ in model.named_parameters())


def test_u4_a_row_without_a_user_vector_gets_the_bias():
    user = vectors()["user_vectors"].values.clone()
    user[3] = 0
    model, batch = build(assets=vectors(user=user), cross="pretrained", token_dim=14), some_rows(40)
    nn.init.normal_(model.cross.projection.bias)
    cross = seen_by(model, "tokens", batch)[:, model.token_names.index("cross")]
    without = batch.categorical["f0"] == 3
    assert 0 < int(without.sum()) < 40
    is_bias = (cross == model.cross.projection.bias).all(1)
    assert torch.equal(is_bias, without)


def test_the_internal_cross_is_of_the_mean_user_and_item_fields():
    model, batch = build(cross="internal", cross_norm=False, token_dim=14), some_rows(4)
    e = model.embeddings.fields(batch)
    expected = model.cross.projection((e[:, 0] + e[:, 2]) / 2 * (e[:, 1] + e[:, 3]) / 2)
    at = model.token_names.index("cross")
    torch.testing.assert_close(seen_by(model, "tokens", batch)[:, at], expected)


def test_a_new_item_past_the_vectors_reads_the_unknown_one():
    tables = tuple(replace(t, grows=True) for t in SCHEMA.tables)
    model = build(schema=replace(SCHEMA, tables=tables), assets=vectors(), dense_token=True,
                  token_dim=14)  # fmt: skip
    batch = some_rows(2)
    ids = batch.categorical.block.clone()
    ids[0, 1], ids[1, 1] = 99, 0
    batch = replace(batch, categorical=Columns(NAMES, ids))
    assert torch.equal(*model.item(batch))


def test_u5_a_tower_reads_its_own_task_token_and_others_only_through_mixing():
    model, batch = build(), some_rows(4)
    tasks = {}

    def keep(name):
        def hook(m, _, x):
            x.retain_grad()
            tasks[name] = x

        return hook

    model.tokens.register_forward_hook(keep("first"))
    model.block0.ffn.register_forward_hook(keep("last"))
    logits = model.score(batch)
    for label, own, other in (("click", 4, 5), ("buy", 5, 4)):
        for state in tasks.values():
            state.grad = None
        logits[label].sum().backward(retain_graph=True)
        assert model.token_names[own] == f"task:{label}"
        assert torch.count_nonzero(tasks["last"].grad[:, other]) == 0
        assert torch.count_nonzero(tasks["last"].grad[:, own]) > 0
        assert torch.count_nonzero(tasks["first"].grad[:, other]) > 0


def test_head_in_is_the_mean_of_the_other_tokens_then_the_task_tokens():
    model, batch = build(), some_rows(4)
    last = model.final_norm(seen_by(model, "block0.ffn", batch))
    head = seen_by(model, "head_in", batch)
    torch.testing.assert_close(head[:, :12], last[:, :4].mean(1))
    assert torch.equal(head[:, 12:], last[:, 4:].flatten(1))


def test_a_label_that_is_no_task_has_no_token_and_reads_the_pool():
    model, batch = build(tasks=("buy",), token_dim=10), some_rows(4)
    assert model.token_names[-1] == "task:buy"
    assert [t[0].layers[0].in_features for t in model.towers.towers] == [10, 20]
    total(model(batch)).backward()
    assert model.stream.constants.grad.abs().sum() > 0


def test_a_label_that_was_not_observed_carries_no_loss():
    model, batch = build(), some_rows(6)
    hidden = replace(batch, observed=Columns(("click", "buy"), torch.tensor([[True, False]] * 6)))
    assert model(hidden)["buy"].item() == 0
    torch.testing.assert_close(model(hidden)["click"], model(batch)["click"])


def test_u6_parameters_are_those_of_the_formula():
    T, D, r, d, K = 6, 12, 2, 3, 2
    model = build(expansion=float(r))
    assert sum(p.numel() for p in model.block0.parameters()) == T * 3 * r * D**2 + 4 * D
    assert sum(p.numel() for p in model.split.parameters()) == FIELDS * d * D + 3 * D
    tables, task_tokens, norm = 2 * FIELDS * VALUES * d, K * D, 2 * D
    global_token = d * 2 * D + 2 * D + 2 * D * D + D
    towers = K * (2 * D * 5 + 5 + 5 + 1)
    whole = tables + task_tokens + norm + global_token + towers
    whole += T * 3 * r * D**2 + 4 * D + FIELDS * d * D + 3 * D
    assert sum(p.numel() for p in model.parameters()) == whole


def test_u6_gelu_has_as_many_weights_as_swiglu():
    gelu = build(ffn="gelu").block0.feed_forward
    weights = sum(p.numel() for name, p in gelu.named_parameters() if "weight" in name)
    assert weights == sum(p.numel() for p in build().block0.feed_forward.parameters())


def test_u6_a_pre_norm_block_is_the_identity_without_its_branches():
    block, x = build().block0, torch.randn(3, 6, 12)
    assert not torch.equal(block(x)[0], x)
    nn.init.zeros_(block.feed_forward.weight_out)
    block.mixing.register_forward_hook(lambda m, _, y: torch.zeros_like(y))
    assert torch.equal(block(x)[0], x)


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_the_block_is_written_out_with_layer_norms(norm):
    model, x = build(norm=norm), torch.randn(3, 6, 12)
    block = model.block0

    def normed(y):
        y = y - y.mean(-1, keepdim=True)
        return y / (y.square().mean(-1, keepdim=True) + 1e-5).sqrt()

    mixed = x.view(3, 6, 6, 2).transpose(1, 2).reshape(3, 6, 12)
    ffn = block.feed_forward
    if norm == "pre":
        s = normed(x).view(3, 6, 6, 2).transpose(1, 2).reshape(3, 6, 12) + x
        expected = ffn(normed(s)) + s
    else:
        s = normed(mixed + x)
        expected = normed(ffn(s) + s)
    torch.testing.assert_close(block(x)[0], expected, rtol=1e-4, atol=1e-5)
    assert isinstance(model.final_norm, nn.LayerNorm) == (norm == "pre")


ABLATIONS = (
    {},
    {"global_token": "none"},
    {"cross": "off"},
    {"crosses": ()},
    {"dense_token": False},
    {"task_tokens": False},
    {"multi_embedding": "off"},
    {"multi_embedding": "off", "global_token": "none", "crosses": (), "cross": "off",
     "dense_token": False, "task_tokens": False},
    {"split_mode": "semantic", "groups": GROUPS, "sparse_tokens": None},
)  # fmt: skip


@pytest.mark.parametrize("change", ABLATIONS)
def test_u7_dummies_keep_the_number_of_tokens_in_every_ablation(change):
    full = replace(
        SMALL, crosses=CROSSES, cross="pretrained", dense_token=True, token_pad="dummy",
        token_dim=18,
    )  # fmt: skip
    batch, plain = some_rows(4), {"token_pad": "off", "token_dim": None}
    model = build(full, assets=vectors(), **change)
    assert seen_by(model, "tokens", batch).shape == (4, 9, 18)
    assert len(model.token_names) == 9
    removed = sum(name.startswith("dummy:") for name in model.token_names)
    without = build(full, assets=vectors(), **{**plain, **change})
    assert len(without.token_names) == 9 - removed
    at = [i for i, name in enumerate(model.token_names) if not name.startswith("dummy:")]
    assert [model.token_names[i] for i in at] == list(without.token_names)
    total(model.train()(batch)).backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("law", ["gradients", "export", "save", "taps", "rows", "untouched"])
@pytest.mark.parametrize(
    "change",
    [
        {"global_token": "dcnv2", "multi_embedding": "single_wide", "norm": "post", "ffn": "gelu"},
        {
            "global_token": "fm",
            "multi_embedding": "off",
            "cross": "internal",
            "anchors": ("item", "user"),
        },
        {"global_pool": "concat", "crosses": (("user", "item"), ("tags", "age")), "num_blocks": 2},
        {"split_mode": "sequential", "task_tokens": False, "token_pad": "off"},
    ],
)
def test_the_laws_hold_away_from_the_tiny_config(change, law):
    class Changed(RankUpConfig):
        @classmethod
        def tiny(cls):
            return replace(RankUpConfig.tiny(), **change)

    check_law(type("Variant", (RankUp,), {"Config": Changed}), law)


def test_defaults_fit_every_number_of_labels_and_fields():
    for schema in (SCHEMA, ONE_LABEL):
        model = RankUp(schema, RankUpConfig())
        T, D = len(model.token_names), model.final_norm.weight.shape[0]
        assert D % T == 0
        assert 64 <= D < 64 + T


NO_ITEM = torch.zeros(VALUES, 4)
VECTORS = {"cross": "pretrained", "token_dim": 14}


@pytest.mark.parametrize(
    ("change", "assets", "where", "fix"),
    [
        ({"token_dim": 13}, None, "mixing", "12 or 18"),
        ({"sparse_tokens": 7}, None, "tokens out of fields", "to 6 or less"),
        ({"split_mode": "semantic", "sparse_tokens": None}, None, "groups", "sequential"),
        ({"split_mode": "semantic", "sparse_tokens": None, "groups": GROUPS[:2]}, None, "groups",
         "each field once"),
        ({"split_mode": "semantic", "sparse_tokens": None, "groups": (*GROUPS, ("f33",))}, None,
         "groups", "'f3'"),
        ({"split_mode": "semantic", "groups": GROUPS}, None, "sparse_tokens", "random"),
        ({"groups": GROUPS}, None, "groups", "semantic"),
        ({"split_mode": "sequential", "split_seed": 3}, None, "split_seed", "random"),
        ({"split_mode": "sequential", "split_resample": "per_batch"}, None, "split_resample",
         "random"),
        ({"global_token": "fm", "global_pool": "concat"}, None, "global_pool", "mlp"),
        ({**BARE, "anchors": ("f1",), "token_dim": 12}, None, "anchors", "mlp"),
        ({"global_token": "fm", "anchors": ("f1",)}, None, "fm", "two fields"),
        ({"anchors": ("f11",)}, None, "schema", "'f1'"),
        ({"crosses": (("f0", "f11"),)}, None, "schema", "'f1'"),
        ({**BARE, "multi_embedding": "on"}, None, "multi_embedding", "off"),
        ({"cross_norm": False}, None, "cross_norm", "pretrained"),
        ({"task_tokens": False, "tasks": ("buy",)}, None, "tasks", "task_tokens=True"),
        ({"tasks": ("click", "bye")}, None, "tasks", "'buy'"),
        ({"tasks": ("buy", "buy")}, None, "tasks", "'buy'"),
        (VECTORS, None, "assets", "user_vectors"),
        ({"dense_token": True}, None, "assets", "user_vectors"),
        (VECTORS, vectors(item=NO_ITEM), "item_vectors", "export the vectors again"),
        (VECTORS, vectors(user=torch.full((VALUES, 4), torch.nan)), "user_vectors", "again"),
        (VECTORS, vectors(item=torch.randn(VALUES - 1, 4)), "t1", "append"),
        (VECTORS, vectors(item=torch.randn(VALUES, 5)), "product", "width 4"),
        (VECTORS, {**vectors(), "item_vectors": Lookup("t11", NO_ITEM, Provenance("x"))},
         "item_vectors", "'t1'"),
    ],
)  # fmt: skip
def test_what_cannot_work_or_does_nothing_is_refused_with_the_nearest_value(
    change, assets, where, fix
):
    with pytest.raises(FullrankError) as refused:
        build(assets=assets, **change)
    assert where in refused.value.where
    assert fix in refused.value.fix


def test_two_tasks_on_one_label_are_refused():
    with pytest.raises(ConfigError) as refused:
        build(schema=ONE_LABEL, tasks=("click", "buy"))
    assert "schema's 1: click" in refused.value.expected
    assert "click" in refused.value.fix


def test_an_internal_cross_without_both_sides_is_refused():
    fields = tuple(replace(f, side="user") for f in SCHEMA.fields)
    with pytest.raises(ConfigError) as refused:
        build(schema=replace(SCHEMA, fields=fields), cross="internal", token_dim=14)
    assert "item" in refused.value.expected


def test_configs_survive_json():
    for config in (SMALL, RankUpConfig.tiny(), replace(SMALL, crosses=CROSSES, anchors=("f0",))):
        assert from_dict(RankUpConfig, to_dict(config)) == config
