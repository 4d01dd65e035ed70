"""DIEN against a loop over rows and events, and a truth that lies in the order of events alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from fullrank.batch import Batch, Columns, Jagged
from fullrank.config import from_dict, to_dict
from fullrank.errors import ConfigError
from fullrank.models.dien import DIEN, DIENConfig
from fullrank.schema import Categorical, Label, Schema, Sequence, Table
from fullrank.testing.cases import area_under_curve, fit, random_batch

SCHEMA = Schema(
    tables=(Table("users", 5), Table("items", 9), Table("cats", 4), Table("liked", 3)),
    fields=(
        Categorical("cat", "cats"),
        Categorical("user", "users"),
        Categorical("item", "items"),
    ),
    sequences=(
        Sequence("past", (("item", "items"), ("cat", "cats"), ("liked", "liked")), max_length=5),
    ),
    labels=(Label("click"),),
)
SMALL = DIENConfig(dim=3, embedding_std=1.0, state_dim=4, aux_hidden=(5, 4), hidden=(6,))


def some_rows(rows, seed=0):
    return random_batch(SCHEMA, rows, torch.Generator().manual_seed(seed))


def few_items(batch):
    """The same rows with four kinds of events, so that the one half a batch on is often equal."""
    past = batch.sequences["past"]
    values = {name: ids % 2 for name, ids in past.values.items()}
    return replace(batch, sequences={"past": Jagged(values, past.offsets)})


def make(**changes):
    torch.manual_seed(1)
    model = DIEN(SCHEMA, replace(SMALL, **changes)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def weights_of(unit, kind):
    names = ("r", "n") if kind == "AGRU" else ("u", "r", "n")
    return [
        dict(zip(names, p.split(unit.dim), strict=True))
        for p in (unit.weight, unit.recurrent, unit.bias)
    ]


def twin(model, batch):
    """Logits [B] and the auxiliary loss, one event at a time."""
    kind, e = model.config.gru_type, model.embeddings
    past, ids, G = batch.sequences["past"], batch.categorical, model.config.state_dim

    def step(weights, x, s, a=None):
        W, U, b = weights
        r = torch.sigmoid(W["r"] @ x + U["r"] @ s + b["r"])
        n = torch.tanh(W["n"] @ x + r * (U["n"] @ s) + b["n"])
        u = (
            a
            if kind == "AGRU" and a is not None
            else torch.sigmoid(W["u"] @ x + U["u"] @ s + b["u"])
        )
        if kind == "AUGRU" and a is not None:
            u = a * u
        return (1 - u) * s + u * n

    first, second = weights_of(model.extractor, "GRU"), weights_of(model.evolution, kind)
    logits, events, states, rows = [], [], [], []
    for row in range(len(batch)):
        t = torch.cat([e.weight("cats")[ids["cat"][row]], e.weight("items")[ids["item"][row]]])
        end = int(past.offsets[row + 1])
        start = max(int(past.offsets[row]), end - 5)
        g, s = [], torch.zeros(G, dtype=torch.float64)
        for j in range(start, end):
            cat, item = past.values["cat"][j], past.values["item"][j]
            h = torch.cat([e.weight("cats")[cat], e.weight("items")[item]])
            told = [e.weight("liked")[past.values["liked"][j]]] if model.config.feedback else []
            s = step(first, torch.cat([h, *told]), s)
            g.append(s)
            events.append(h)
            rows.append(row)
        states += g
        s = torch.zeros(G, dtype=torch.float64)
        if g and kind != "GRU":
            scores = torch.stack([gj @ (model.attention.weight @ t) for gj in g])
            shares = torch.exp(scores) / torch.exp(scores).sum()
        for j, gj in enumerate(g):
            if kind in ("AUGRU", "AGRU"):
                s = step(second, gj, s, shares[j])
            else:
                s = step(second, gj * shares[j] if kind == "AIGRU" else gj, s)
        user = e.weight("users")[ids["user"][row]]
        logits.append(model.head(model.deep(torch.cat([user, t, s])[None]))[0, 0])
    return torch.stack(logits), auxiliary(model, states, events, rows)


def auxiliary(model, states, events, rows):
    """The auxiliary loss; the network written on the joined vector [g; h]."""
    f, S, terms = model.next_event, len(events), []
    if f is None:
        return None

    def judge(g, h):
        if f.rest is None:
            return (f.of_state.weight @ g) @ h
        joined = torch.cat([f.of_state.weight, f.of_event.weight], 1) @ torch.cat([g, h])
        return f.out(f.rest(torch.relu(joined + f.of_state.bias)))[0]

    for j in range(S - 1):
        other = (j + 1 - S // 2) % S
        if rows[j] != rows[j + 1] or rows[other] == rows[j]:
            continue
        if torch.equal(events[other], events[j + 1]):
            continue
        yes, no = judge(states[j], events[j + 1]), judge(states[j], events[other])
        terms.append(-torch.log(torch.sigmoid(yes)) - torch.log(1 - torch.sigmoid(no)))
    assert len(terms) > 3, "the batch is too small to say anything"
    return sum(terms) / len(terms)


@pytest.mark.parametrize("gru_type", ["AUGRU", "AGRU", "AIGRU", "GRU"])
@pytest.mark.parametrize("change", [{}, {"feedback": False, "aux_hidden": ()}])
def test_s5_2_scores_and_auxiliary_loss_equal_a_loop_over_rows_and_events(gru_type, change):
    model, batch = make(gru_type=gru_type, aux_weight=0.5, **change), few_items(some_rows(9))
    logits, aux = twin(model, batch)
    torch.testing.assert_close(model.score(batch)["click"], logits)
    torch.testing.assert_close(model(batch)["next_event"], 0.5 * aux)


def test_s5_2_gradients_equal_those_of_the_loop():
    model, batch = make(), some_rows(9)
    logits, aux = twin(model, batch)
    found = []
    for value in (
        model.score(batch)["click"].square().sum() + model(batch)["next_event"],
        logits.square().sum() + aux,
    ):
        found.append(torch.autograd.grad(value, list(model.parameters()), retain_graph=True))
    for mine, loop in zip(*found, strict=True):
        torch.testing.assert_close(mine, loop)


def test_s8_the_auxiliary_loss_is_a_mean_over_pairs_not_over_places():
    """A longer window, and rows without a pair, do not dilute it."""
    model, batch = make(), some_rows(6)
    lone = batch.rows(torch.tensor([0]))
    empty = replace(lone, sequences={"past": Jagged(
        {k: v[:0] for k, v in lone.sequences["past"].values.items()}, torch.zeros(2).long()
    )})  # fmt: skip
    assert model(empty)["next_event"].item() == 0.0
    assert model(lone)["next_event"].item() == 0.0, "one row has nothing to be told from"
    past = batch.sequences["past"]
    more = Jagged(past.values, torch.cat([past.offsets, past.offsets[-1:].repeat(20)]))
    longer = replace(batch.rows(torch.arange(26) % 6), sequences={"past": more})
    torch.testing.assert_close(model(longer)["next_event"], model(batch)["next_event"])


def test_s7_the_order_of_events_matters():
    model, batch = make(), some_rows(6)
    past = batch.sequences["past"]
    rows = torch.repeat_interleave(torch.arange(6), past.lengths())
    back = past.offsets[:-1][rows] + past.offsets[1:][rows] - 1 - torch.arange(len(rows))
    turned = Jagged({k: v[back] for k, v in past.values.items()}, past.offsets)
    moved = model.score(replace(batch, sequences={"past": turned}))["click"]
    changed = ~torch.isclose(moved, model.score(batch)["click"])
    assert changed[past.lengths() > 1].all()
    assert not changed[past.lengths() < 2].any()


def test_s7_an_empty_history_is_an_interest_of_zero_and_padding_is_masked_at_the_taps():
    model, batch, seen = make(), some_rows(30), {}
    for name in ("interest", "interests", "interests_valid"):
        tap = model.get_submodule(name)
        tap.register_forward_hook(lambda m, _, x, name=name: seen.update({name: (m.axes, x)}))
    model.score(batch)
    lengths = batch.sequences["past"].lengths().clamp(max=5)
    assert (lengths == 0).any()
    assert torch.equal(seen["interest"][1].abs().sum(1) == 0, lengths == 0)
    (axes, states), (_, valid) = seen["interests"], seen["interests_valid"]
    assert (axes, states.shape) == ("B T D", (30, 5, 4))
    assert torch.equal(valid, torch.arange(5) < lengths[:, None])
    assert torch.equal(states.abs().sum(2) > 0, valid)


def test_feedback_reaches_the_extractor_only_where_it_is_asked_for():
    batch = some_rows(8)
    past = batch.sequences["past"]
    other = {**past.values, "liked": (past.values["liked"] + 1) % 3}
    moved = replace(batch, sequences={"past": Jagged(other, past.offsets)})
    told, deaf = make(), make(feedback=False)
    assert not torch.allclose(told.score(moved)["click"], told.score(batch)["click"])
    assert torch.equal(deaf.score(moved)["click"], deaf.score(batch)["click"])
    assert "liked" in {t.name for t in told.embeddings.schema.tables}
    assert "liked" not in {t.name for t in deaf.embeddings.schema.tables}


def test_parts_that_a_setting_leaves_without_effect_are_not_built_and_settings_refused():
    assert make(gru_type="GRU").attention is None
    assert make(aux=False, aux_hidden=(100, 50)).next_event is None
    assert list(make(aux=False, aux_hidden=(100, 50))(some_rows(4))) == ["click"]
    for change in ({"aux_weight": 0.1}, {"aux_hidden": ()}):
        with pytest.raises(ConfigError) as refused:
            DIENConfig(aux=False, **change)
        assert "aux=True" in refused.value.fix
    with pytest.raises(ConfigError):
        DIENConfig(aux_weight=0.0)
    for config in (SMALL, DIENConfig(), DIENConfig.tiny()):
        assert from_dict(DIENConfig, to_dict(config)) == config


def drifting(rows, seed, shuffled):
    """Two items of one category and two of another; click if the last is of the target's.

    What was seen and how often says nothing: only the order does.
    """
    g = torch.Generator().manual_seed(seed)
    first = torch.randint(0, 2, (rows,), generator=g)
    order = torch.rand(rows, 4, generator=g).argsort(1)
    cats = torch.tensor([0, 0, 1, 1])[order]  # [B, 4]
    label = (cats[:, -1] == first).float()
    items = 1 + 4 * cats + torch.randint(0, 4, (rows, 4), generator=g)
    if shuffled:
        items = items.gather(1, torch.rand(rows, 4, generator=g).argsort(1))
    target = 1 + 4 * first + torch.randint(0, 4, (rows,), generator=g)
    schema = Schema(
        tables=(Table("items", 9),),
        fields=(Categorical("item", "items"),),
        sequences=(Sequence("past", (("item", "items"),), max_length=4),),
        labels=(Label("click"),),
    )
    past = Jagged({"item": items.flatten().int()}, torch.arange(rows + 1) * 4)
    return schema, Batch(
        categorical=Columns(("item",), target[:, None].int()),
        numeric=Columns.none(rows, torch.float32),
        labels=Columns(("click",), label[:, None]),
        observed=Columns(("click",), torch.ones(rows, 1, dtype=torch.bool)),
        weight=torch.ones(rows),
        group=torch.zeros(rows, dtype=torch.int64),
        time=torch.zeros(rows, dtype=torch.int64),
        sequences={"past": past},
    )


@pytest.mark.parametrize("gru_type", ["AUGRU", "GRU"])
def test_s7_a_truth_in_the_order_of_events_is_found_and_is_gone_when_they_are_shuffled(gru_type):
    """Shuffled histories are what a model sees that is blind to order."""
    config = DIENConfig(
        dim=8, embedding_std=0.3, state_dim=12, gru_type=gru_type, aux=False, hidden=(16,)
    )
    reached = {}
    for shuffled in (False, True):
        torch.manual_seed(0)
        schema, seen = drifting(512, 1, shuffled)
        model = DIEN(schema, config)
        fit(model, seen, steps=50, learning_rate=0.03)
        _, unseen = drifting(2048, 2, shuffled)
        scores = model.score(unseen)["click"].detach()
        reached[shuffled] = area_under_curve(scores, unseen.labels["click"])
    assert reached[False] > 0.95, reached
    assert 0.45 < reached[True] < 0.55, reached


def test_the_auxiliary_loss_is_learnt_where_the_next_event_can_be_told():
    """Rows repeat one item: every state tells what comes next. Random rows tell nothing."""
    chance = 2 * F.softplus(torch.tensor(0.0)).item()
    reached = {}
    for repeated in (True, False):
        torch.manual_seed(0)
        schema, batch = drifting(192, 3, False)
        items = torch.randint(1, 9, (192, 1 if repeated else 4)).expand(192, 4)
        past = Jagged({"item": items.flatten().int()}, batch.sequences["past"].offsets)
        batch = replace(batch, sequences={"past": past})
        model = DIEN(schema, replace(SMALL, embedding_std=0.3, hidden=(4,), aux_hidden=(12,)))
        fit(model, batch, steps=40)
        reached[repeated] = model(batch)["next_event"].item()
    assert reached[True] < 0.4 * chance
    assert reached[False] > 0.85 * chance
