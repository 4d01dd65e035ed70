"""SIM: what each search finds, against sorting by hand, and what teaches the soft one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from fullrank.batch import Batch, Columns, Jagged
from fullrank.config import from_dict, to_dict
from fullrank.errors import ConfigError
from fullrank.models.sim import SIM, SIMConfig
from fullrank.ops.export import export_program, flatten
from fullrank.schema import Categorical, Label, Schema, Sequence, Table
from fullrank.testing.cases import random_batch

COLUMNS = (("item", "items"), ("liked", "liked"), ("cat", "cats"), ("time", None))
SCHEMA = Schema(
    tables=(Table("users", 6), Table("items", 9), Table("cats", 4), Table("liked", 3)),
    fields=(
        Categorical("item", "items"),
        Categorical("user", "users"),
        Categorical("cat", "cats"),
    ),
    sequences=(Sequence("past", COLUMNS, max_length=6),),
    labels=(Label("click"),),
)
SOFT = SIMConfig(
    dim=2, embedding_std=1.0, top_k=3, short_length=2, relevance_dim=3, search_hidden=(4,),
    attention_dim=4, hidden=(5,), time="time", time_dim=2,
)  # fmt: skip
HARD = SIMConfig(
    dim=2, embedding_std=1.0, search="hard", category="cat", top_k=3, short_length=2,
    attention_dim=4, hidden=(5,), time="time", time_dim=2,
)  # fmt: skip


def built(config: SIMConfig) -> SIM:
    torch.manual_seed(0)
    model = SIM(SCHEMA, config).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    return model.eval()


def some_rows(rows: int, seed: int = 0) -> Batch:
    """Histories of 0 to 12 events, twice the window, in order of time."""
    batch = random_batch(SCHEMA, rows, torch.Generator().manual_seed(seed))
    past = batch.sequences["past"]
    times = torch.arange(len(past.values["time"])) ** 3
    values = {**past.values, "time": times}
    return replace(batch, sequences={"past": Jagged(values, past.offsets)})


def looked_up(model: SIM, batch: Batch) -> tuple[Tensor, Tensor]:
    """Returns targets [B, 4] and events [S, 6], each with feedback."""
    weight, past = model.embeddings.weight, batch.sequences["past"].values
    item, cat = (batch.categorical[name] for name in ("item", "cat"))
    t = torch.cat([weight("items")[item], weight("cats")[cat]], 1)
    parts = [weight("items")[past["item"]], weight("cats")[past["cat"]]]
    return t, torch.cat([*parts, weight("liked")[past["liked"]]], 1)


def chosen(model: SIM, batch: Batch, row: int) -> list[int]:
    """Which events the search should find, by sorting."""
    past = batch.sequences["past"]
    start, end = past.offsets[row : row + 2].tolist()
    window = range(max(start, end - 6), end)
    if model.config.search == "hard":
        own = int(batch.categorical["cat"][row])
        alike = [j for j in window if own and int(past.values["cat"][j]) == own]
        return alike[-model.config.top_k :]
    t, events = looked_up(model, batch)
    a, b = model.search.target.weight, model.search.event.weight
    relevance = {j: ((a @ t[row]) @ (b @ events[j, :4])).item() for j in window}
    return sorted(window, key=lambda j: -relevance[j])[: model.config.top_k]


def attended(layer: Any, t: Tensor, x: Tensor) -> Tensor:
    """One row of attention with every event projected."""
    q, k, v, out = layer.query(t), layer.key(x), layer.value(x), []
    for head in range(layer.heads):
        part = slice(head * len(q) // layer.heads, (head + 1) * len(q) // layer.heads)
        scale = (part.stop - part.start) ** 0.5
        out.append((k[:, part] @ q[part] / scale).softmax(0) @ v[:, part])
    return torch.cat(out) if len(x) else torch.zeros_like(q)


def twin(model: SIM, batch: Batch) -> Tensor:
    past = batch.sequences["past"]
    t, events = looked_up(model, batch)
    logits = []
    for row in range(len(batch)):
        start, end = past.offsets[row : row + 2].tolist()
        found = chosen(model, batch, row)
        newest = list(range(max(start, end - model.config.short_length), end))
        x = events[found]
        if model.config.time:
            gap = [int(past.values["time"][end - 1] - past.values["time"][j]) for j in found]
            bucket = [min(31, (g + 1).bit_length() - 1) for g in gap]
            x = torch.cat([x, model.gaps.weight[bucket]], 1)
        both = [attended(model.long, t[row], x), attended(model.short, t[row], events[newest])]
        user = model.embeddings.weight("users")[batch.categorical["user"][row]]
        deep = model.deep.layers[0]
        h = (deep.weight @ torch.cat([user, t[row], *both]) + deep.bias).clamp(min=0)
        logits.append(model.head.weight[0] @ h + model.head.bias[0])
    return torch.stack(logits)


@pytest.mark.parametrize("base", [SOFT, HARD], ids=["soft", "hard"])
@pytest.mark.parametrize("change", [{}, {"time": "", "time_dim": 8}, {"top_k": 99}], ids=str)
def test_5_3_scores_equal_a_twin_that_sorts(base, change) -> None:
    model, batch = built(replace(base, **change)), some_rows(12)
    torch.testing.assert_close(model.score(batch)["click"], twin(model, batch))


def test_5_3_the_search_is_taught_by_a_loss_of_its_own_over_the_whole_window() -> None:
    model, batch = built(SOFT), some_rows(9)
    batch = replace(batch, observed=Columns(("click",), torch.ones(9, 1, dtype=torch.bool)))
    t, events = looked_up(model, batch)
    past, total = batch.sequences["past"], torch.zeros((), dtype=torch.float64)
    for row in range(9):
        start, end = past.offsets[row : row + 2].tolist()
        h = events[max(start, end - 6) : end, :4]
        relevance = (model.search.event(h) * model.search.target(t[row])).sum(1)
        pooled = (relevance.unsqueeze(1) * h).sum(0)
        logit = model.search.head(model.search.deep(torch.cat([t[row], pooled])[None]))[0, 0]
        sign = 1 - 2 * batch.labels["click"][row].double()
        total = total + batch.weight[row] * torch.log1p(torch.exp(sign * logit))
    losses = model(batch)
    assert set(losses) == {"click", "soft_search"}
    expected = total / batch.weight.sum()
    torch.testing.assert_close(losses["soft_search"], expected, check_dtype=False)
    twice = built(replace(SOFT, search_weight=2.0))(batch)
    torch.testing.assert_close(twice["soft_search"], 2 * losses["soft_search"])
    torch.testing.assert_close(twice["click"], losses["click"])


def test_5_3_what_is_found_carries_no_gradient_into_the_search() -> None:
    model, batch = built(SOFT), some_rows(9)
    losses = model(batch)
    losses["click"].backward(retain_graph=True)
    assert all(p.grad is None for p in model.search.parameters())
    losses["soft_search"].backward()
    assert all(p.grad is not None and p.grad.any() for p in model.search.parameters())


def test_hard_search_has_no_loss_of_its_own() -> None:
    assert set(built(HARD)(some_rows(5))) == {"click"}


def seen_of(model: SIM, batch: Batch) -> Tensor:
    seen = []
    handle = model.found_valid.register_forward_hook(lambda _, __, x: seen.append(x))
    model.score(batch)
    handle.remove()
    return seen[0]


def test_section_7_top_k_never_returns_padding_while_there_is_an_event() -> None:
    model, batch = built(SOFT), some_rows(30)
    with torch.no_grad():  # every relevance is negative: padding of zero would come first
        model.embeddings.rows.abs_()
        model.search.target.weight.abs_()
        model.search.event.weight.abs_().neg_()
    found = seen_of(model, batch).sum(1)
    lengths = batch.sequences["past"].lengths()
    assert torch.equal(found, lengths.clamp(max=3))
    assert (lengths == 0).any()


def test_hard_search_finds_nothing_for_an_unknown_category_or_one_never_seen() -> None:
    model, batch = built(HARD), some_rows(30)
    unknown = batch.categorical["cat"] == 0
    seen = seen_of(model, batch).any(1)
    assert unknown.any()
    assert not seen[unknown].any()
    assert seen[~unknown].any()


def test_hard_search_finds_the_newest_of_a_category() -> None:
    batch = some_rows(12)
    past, own = batch.sequences["past"], batch.categorical.block.clone()
    own[:, 2] = 1
    values = {**past.values, "cat": torch.ones_like(past.values["cat"])}  # all are of the category
    alike = replace(
        batch,
        categorical=Columns(batch.categorical.names, own),
        sequences={"past": Jagged(values, past.offsets)},
    )
    model = built(HARD)
    assert int(past.lengths().max()) > model.config.top_k
    torch.testing.assert_close(model.score(alike)["click"], twin(model, alike))


@pytest.mark.parametrize("config", [SOFT, HARD], ids=["soft", "hard"])
def test_events_beyond_the_window_and_empty_histories(config) -> None:
    model, batch = built(config), some_rows(12)
    newest = replace(batch, sequences={"past": batch.sequences["past"].newest(6)})
    assert torch.equal(model.score(newest)["click"], model.score(batch)["click"])
    empty = random_batch(SCHEMA, 3, torch.Generator().manual_seed(0), empty=True)
    losses = model.train()(empty)
    torch.stack(list(losses.values())).sum().backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_the_hard_search_and_gaps_of_time_export() -> None:
    model = built(HARD)  # the laws export a soft one
    program = export_program(model, SCHEMA, some_rows(9)).module()
    for rows in (1, 20):
        batch = some_rows(rows, seed=rows)
        torch.testing.assert_close(program(flatten(batch)), model.score(batch))


@pytest.mark.parametrize(
    ("base", "change", "where", "fix"),
    [
        (SOFT, {"category": "cat"}, "category", "search=hard"),
        (HARD, {"search_weight": 2.0}, "search_weight", "search=soft"),
        (HARD, {"relevance_dim": 5}, "relevance_dim", "search=soft"),
        (HARD, {"category": "cta"}, "category", "cat"),
        (HARD, {"category": "user"}, "category", ""),
        (HARD, {"category": ""}, "category", ""),
        (SOFT, {"time": "tmie"}, "time", "time"),
        (SOFT, {"time": "item"}, "time", "time"),
        (SOFT, {"time": ""}, "time_dim", "leave time_dim out"),
        (SOFT, {"attention_dim": 5}, "attention_dim", "6"),
        (SOFT, {"top_k": 0}, "top_k", "raise"),
    ],
)
def test_what_cannot_work_or_does_nothing_is_refused(base, change, where, fix) -> None:
    with pytest.raises(ConfigError) as refused:
        SIM(SCHEMA, replace(base, **change))
    assert where in refused.value.where
    assert fix in refused.value.fix


def test_configs_survive_json() -> None:
    for config in (SOFT, HARD, SIMConfig(), SIMConfig.tiny()):
        assert from_dict(SIMConfig, to_dict(config)) == config
