"""DIN: against a padded twin written from the paper, and what moves its interest."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from fullrank.batch import Batch, Jagged
from fullrank.config import from_dict, to_dict
from fullrank.errors import BatchError, ConfigError, SchemaError
from fullrank.models.din import DIN, DINConfig
from fullrank.schema import Categorical, Label, Schema, Sequence, Table
from fullrank.testing.cases import random_batch

SCHEMA = Schema(
    tables=(Table("users", 6), Table("items", 9), Table("cats", 4), Table("liked", 3)),
    fields=(
        Categorical("item", "items"),
        Categorical("user", "users"),
        Categorical("cat", "cats"),
    ),
    sequences=(
        Sequence("past", (("item", "items"), ("liked", "liked"), ("cat", "cats")), max_length=5),
    ),
    labels=(Label("click"), Label("buy")),
)
SMALL = DINConfig(dim=2, embedding_std=1.0, attention=(6, 4), hidden=(5,))


def built(config: DINConfig = SMALL, schema: Schema = SCHEMA) -> DIN:
    torch.manual_seed(0)
    model = DIN(schema, config).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    return model


def some_rows(rows: int, seed: int = 0, schema: Schema = SCHEMA) -> Batch:
    return random_batch(schema, rows, torch.Generator().manual_seed(seed))


def events_of(batch: Batch, row: int, length: int) -> range:
    start, end = batch.sequences["past"].offsets[row : row + 2].tolist()
    return range(max(start, end - length), end)


def dice(layer: Any, x: Tensor, real: Tensor, training: bool) -> Tensor:
    """Over the real places of a padded rectangle [B, T, D] alone."""
    mean, var = layer.running_mean, layer.running_var
    if training:
        mean, var = x[real].mean(0), x[real].var(0, correction=0)
    p = 1 / (1 + torch.exp(-(x - mean) / (var + 1e-9).sqrt()))
    return p * x + (1 - p) * layer.alpha * x


def padded_twin(model: DIN, batch: Batch, training: bool, length: int = 5) -> Tensor:
    """The paper's equations on rectangles, without a split product and without flat events."""
    c, past = model.config, batch.sequences["past"].values
    tables = {name: model.embeddings.weight(name) for name in ("users", "items", "cats")}
    at = {name: batch.categorical[name].long() for name in ("item", "user", "cat")}
    t = torch.cat([tables["items"][at["item"]], tables["cats"][at["cat"]]], 1)  # [B, 4]
    B = len(batch)
    h, real = t.new_zeros(B, length, 4), torch.zeros(B, length, dtype=torch.bool)
    e = t.new_zeros(B, length, 2 if c.feedback else 0)
    for b in range(B):
        for place, j in enumerate(events_of(batch, b, length)):
            h[b, place] = torch.cat(
                [tables["items"][past["item"][j]], tables["cats"][past["cat"][j]]]
            )
            if c.feedback:
                e[b, place] = model.embeddings.weight("liked")[past["liked"][j]]
            real[b, place] = True
    wide = t.unsqueeze(1).expand_as(h)
    x = model.attention.first(torch.cat([wide, h, wide - h, wide * h, e], 2))
    first, second, third, last = model.attention.rest
    x = dice(third, second(dice(first, x, real, training)), real, training)
    a = last(x).squeeze(2)  # [B, T]
    if c.softmax:
        a = a.masked_fill(~real, -torch.inf).softmax(1).nan_to_num()
    a = torch.where(real, a, 0.0)
    interest = (a.unsqueeze(2) * torch.cat([h, e], 2)).sum(1)
    deep, head = model.deep.layers[0], model.head
    joined = torch.cat([tables["users"][at["user"]], t, interest], 1)
    return head((joined @ deep.weight.T + deep.bias).clamp(min=0))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("feedback", [True, False])
@pytest.mark.parametrize("softmax", [True, False])
def test_5_1_scores_and_gradients_equal_a_padded_twin(feedback, softmax, training) -> None:
    model = built(replace(SMALL, feedback=feedback, softmax=softmax))
    model(some_rows(20, 1))  # moves the running values
    model.train(training)
    batch, grads = some_rows(7), []
    theirs = padded_twin(model, batch, training)
    scores = model.score(batch)
    mine = torch.stack([scores["click"], scores["buy"]], 1)
    torch.testing.assert_close(mine, theirs)
    for out in (mine, theirs):
        model.zero_grad()
        out.square().sum().backward()
        grads.append({n: p.grad.clone() for n, p in model.named_parameters()})
    for name in grads[0]:
        torch.testing.assert_close(grads[0][name], grads[1][name], msg=name)


def with_past(batch: Batch, past: Jagged) -> Batch:
    return replace(batch, sequences={"past": past})


def test_section_7_the_order_of_the_past_does_not_move_the_interest() -> None:
    model, batch = built().eval(), some_rows(6)
    past = batch.sequences["past"].newest(5)
    spans = zip(past.offsets[:-1].tolist(), past.offsets[1:].tolist(), strict=True)
    turned = torch.tensor([j for start, end in spans for j in reversed(range(start, end))])
    other = Jagged({n: v[turned] for n, v in past.values.items()}, past.offsets)
    torch.testing.assert_close(
        model.score(with_past(batch, other))["click"], model.score(batch)["click"]
    )


@pytest.mark.parametrize("softmax", [True, False])
def test_section_7_an_event_outside_the_window_has_no_weight(softmax) -> None:
    model, batch = built(replace(SMALL, length=2, softmax=softmax)).eval(), some_rows(8)
    past = batch.sequences["past"]
    assert int(past.lengths().max()) > 2
    newest = torch.zeros(len(past.values["item"]), dtype=torch.bool)
    for row in range(8):
        newest[list(events_of(batch, row, 2))] = True
    values = {n: torch.where(newest, v, 1) for n, v in past.values.items()}
    moved = with_past(batch, Jagged(values, past.offsets))
    assert torch.equal(model.score(moved)["click"], model.score(batch)["click"])
    torch.testing.assert_close(
        model.score(batch)["click"], padded_twin(model, batch, False, length=2)[:, 0]
    )


def test_the_interest_grows_with_the_number_of_like_events_unless_weights_add_up() -> None:
    """Why the paper has no softmax: nine events of a kind say more than one."""
    for softmax in (False, True):
        model = built(replace(SMALL, softmax=softmax)).eval()
        seen = []
        model.interest.register_forward_hook(lambda _, __, x, seen=seen: seen.append(x))
        batch = some_rows(1)
        for count in (1, 4):
            ids = torch.ones(count, dtype=torch.int32)
            past = Jagged(dict.fromkeys(("item", "liked", "cat"), ids), torch.tensor([0, count]))
            model.score(with_past(batch, past))
        torch.testing.assert_close(seen[1], seen[0] * (1 if softmax else 4))


def test_an_empty_history_is_an_interest_of_zero_also_in_a_batch_without_any_event() -> None:
    for softmax in (False, True):
        model, seen = built(replace(SMALL, softmax=softmax)), []
        model.interest.register_forward_hook(lambda _, __, x, seen=seen: seen.append(x))
        batch = random_batch(SCHEMA, 3, torch.Generator().manual_seed(0), empty=True)
        torch.stack(list(model(batch).values())).sum().backward()
        assert not seen[0].any()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
        assert all(b.isfinite().all() for b in model.buffers())


def test_unknown_items_are_a_row_and_rows_outside_the_table_are_refused() -> None:
    model = built().eval()
    blank = random_batch(SCHEMA, 3, torch.Generator().manual_seed(0), unknown=True)
    assert model.score(blank)["click"].isfinite().all()
    past = blank.sequences["past"]
    outside = Jagged({**past.values, "item": past.values["item"] + 9}, past.offsets)
    with pytest.raises(BatchError, match=r"past\.item"):
        model.score(with_past(blank, outside))


def test_without_feedback_columns_the_switch_changes_nothing() -> None:
    plain = replace(SCHEMA, sequences=(Sequence("past", (("item", "items"),), 5),))
    batch = some_rows(4, schema=plain)
    models = [built(replace(SMALL, feedback=f), plain).eval() for f in (True, False)]
    assert models[0].attention.first.in_features == 4 * 2
    assert torch.equal(*(m.score(batch)["click"] for m in models))
    assert {t.name for t in models[0].embeddings.schema.tables} == {"users", "items", "cats"}


@pytest.mark.parametrize(
    ("change", "where"),
    [({"attention": ()}, "attention"), ({"length": 6}, "history"), ({"dropout": 1.0}, "dropout")],
)
def test_impossible_settings_are_refused(change, where) -> None:
    with pytest.raises(ConfigError) as refused:
        DIN(SCHEMA, replace(SMALL, **change))
    assert where in refused.value.where
    with pytest.raises(SchemaError, match="no such sequence"):
        DIN(SCHEMA, replace(SMALL, history="pats"))


def test_configs_survive_json() -> None:
    for config in (SMALL, DINConfig(), DINConfig.tiny()):
        assert from_dict(DINConfig, to_dict(config)) == config
