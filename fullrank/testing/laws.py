"""The laws, one function each; a broken law raises AssertionError.

All run on `Config.tiny()`, on CPU, each in about a second.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from fullrank.batch import Batch, Columns, Jagged
from fullrank.config import from_dict, to_dict
from fullrank.errors import ConfigError
from fullrank.ops.blocks import score_in_blocks
from fullrank.ops.export import export_program, flatten
from fullrank.schema import Categorical, Label, Schema, Sequence, Table
from fullrank.tap import Tap
from fullrank.testing.cases import area_under_curve, fit, planted, random_batch, tiny_schema

ModelClass = type[Any]


def _total(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(losses.values())).sum()


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _model(cls: ModelClass, schema: Schema) -> Any:
    """A tiny model in eval mode, moved off its initial values so that no part is silent."""
    model = cls(schema, cls.Config.tiny())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        model.train()(random_batch(schema, 64, _generator(9)))  # moves running statistics
    return model.eval()


def _same(a: dict[str, Tensor], b: dict[str, Tensor], what: str, atol: float = 0.0) -> None:
    assert a.keys() == b.keys(), f"{what}: {sorted(a)} against {sorted(b)}"
    for name in a:
        torch.testing.assert_close(
            a[name], b[name], rtol=atol, atol=atol, msg=lambda text: f"{what}: {text}"
        )


def law_config(cls: ModelClass) -> None:
    """Default and tiny configs build, also without memory, survive JSON, refuse unknown keys."""
    for config in (cls.Config(), cls.Config.tiny()):
        stored = to_dict(config)
        assert from_dict(cls.Config, stored) == config, f"{config} does not survive to_dict"
        assert isinstance(cls(tiny_schema(), config), nn.Module)
        with torch.device("meta"):  # how an artefact checks sizes before it allocates anything
            assert isinstance(cls(tiny_schema(), config), nn.Module)
        try:
            from_dict(cls.Config, {**stored, "no_such_setting": 1})
        except ConfigError:
            continue
        raise AssertionError(f"{cls.Config.__name__} takes an unknown key")


def law_finite(cls: ModelClass) -> None:
    """Scores and losses are finite: normal rows, one row, empty histories, unknown ids."""
    schema, g = tiny_schema(), _generator(0)
    model = _model(cls, schema)
    batches = {
        "normal": random_batch(schema, 16, g),
        "one row": random_batch(schema, 1, g),
        "empty histories": random_batch(schema, 8, g, empty=True),
        "one row with empty histories": random_batch(schema, 1, g, empty=True),
        "unknown ids": random_batch(schema, 8, g, unknown=True),
        "nothing observed": random_batch(schema, 8, g).without_labels(),
    }
    for name, batch in batches.items():
        for mode in (True, False):
            losses = model.train(mode)(batch)
            assert losses, "no losses"
            for label, loss in losses.items():
                assert loss.ndim == 0, f"loss '{label}' is no scalar: {tuple(loss.shape)}"
                assert bool(loss.isfinite()), f"loss '{label}' of {name} is {loss.item()}"
        scores = model.score(batch)
        assert list(scores) == [label.name for label in schema.labels], f"labels {list(scores)}"
        for label, logits in scores.items():
            assert logits.shape == (len(batch),), f"'{label}' of {name}: {tuple(logits.shape)}"
            assert bool(logits.isfinite().all()), f"score '{label}' of {name} is not finite"


def law_gradients(cls: ModelClass) -> None:
    """Every parameter gets a gradient that is not zero."""
    model = _model(cls, tiny_schema()).train()
    _total(model(random_batch(tiny_schema(), 128, _generator(1)))).backward()  # type: ignore[no-untyped-call]
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, f"{name} got no gradient"
        assert bool(parameter.grad.abs().sum() > 0), f"the gradient of {name} is zero"


@torch.no_grad()
def law_rows(cls: ModelClass) -> None:
    """A row's scores are the same alone and in company; in fixed blocks, to the bit."""
    schema = tiny_schema()
    model, batch = _model(cls, schema), random_batch(schema, 70, _generator(2))
    together, blocks = model.score(batch), score_in_blocks(model.score, batch)
    _same(blocks, together, "blocks against one batch", 1e-5)
    for row in (0, 1, 63, 64, 69):
        alone = batch.rows(torch.tensor([row]))
        here = {label: logits[row : row + 1] for label, logits in together.items()}
        _same(model.score(alone), here, f"row {row} alone", 1e-5)
        block = {label: logits[row : row + 1] for label, logits in blocks.items()}
        _same(score_in_blocks(model.score, alone), block, f"row {row} alone, in a block")


@torch.no_grad()
def law_histories(cls: ModelClass) -> None:
    """Events beyond the window and the order inside a bag change nothing."""
    schema = tiny_schema()
    model, batch = _model(cls, schema), random_batch(schema, 32, _generator(3))
    window = {s.name: s.max_length for s in schema.sequences}
    newest = {name: _taken(j, window[name]) for name, j in batch.sequences.items()}
    _same(model.score(replace(batch, sequences=newest)), model.score(batch), "old events", 1e-6)
    turned = {name: _taken(j, None) for name, j in batch.bags.items()}
    _same(model.score(replace(batch, bags=turned)), model.score(batch), "turned bags", 1e-5)


def _taken(jagged: Jagged, newest: int | None) -> Jagged:
    """Keeps the newest events of each row, or turns each row around when None."""
    spans = list(zip(jagged.offsets[:-1].tolist(), jagged.offsets[1:].tolist(), strict=True))
    if newest is None:
        rows = [list(range(start, end))[::-1] for start, end in spans]
    else:
        rows = [list(range(max(start, end - newest), end)) for start, end in spans]
    flat = torch.tensor([i for row in rows for i in row], dtype=torch.int64)
    offsets = torch.tensor([0, *(len(row) for row in rows)]).cumsum(0)
    return Jagged({name: values[flat] for name, values in jagged.values.items()}, offsets)


@torch.no_grad()
def law_labels(cls: ModelClass) -> None:
    """Scores do not move when labels, weights, groups and what was observed move."""
    schema = tiny_schema()
    model, batch = _model(cls, schema), random_batch(schema, 32, _generator(4))
    other = random_batch(schema, 32, _generator(5))
    moved = replace(
        batch,
        labels=Columns(batch.labels.names, 1 - batch.labels.block),
        observed=other.observed,
        weight=other.weight,
        group=other.group,
    )
    _same(model.score(moved), model.score(batch), "other labels")


@torch.no_grad()
def law_save(cls: ModelClass) -> None:
    """Saved as safetensors and loaded into a fresh model, the scores have equal bits."""
    schema = tiny_schema()
    model, batch = _model(cls, schema), random_batch(schema, 32, _generator(6))
    stored = safetensors.torch.save(dict(model.state_dict()))
    fresh = cls(schema, cls.Config.tiny()).eval()
    fresh.load_state_dict(safetensors.torch.load(stored))
    _same(fresh.score(batch), model.score(batch), "loaded")


def law_memory(cls: ModelClass) -> None:
    """Sixty-four rows with random labels can be learnt by heart."""
    schema = Schema(
        tables=(Table("rows", 65), Table("items", 9)),
        fields=(Categorical("row", "rows"), Categorical("item", "items")),
        sequences=(Sequence("past", (("item", "items"),), max_length=3),),
        labels=(Label("click"),),
    )
    batch = random_batch(schema, 64, _generator(7))
    ids = torch.stack([torch.arange(1, 65), batch.categorical["item"]], dim=1).int()
    batch = replace(
        batch,
        categorical=Columns(("row", "item"), ids),
        observed=Columns(("click",), torch.ones(64, 1, dtype=torch.bool)),
    )
    model = cls(schema, cls.Config.tiny())
    fit(model, batch, steps=300, learning_rate=0.05)
    right = (model.score(batch)["click"] > 0) == (batch.labels["click"] > 0)
    assert bool(right.all()), f"{int((~right).sum())} of 64 rows not learnt"


def law_truth(cls: ModelClass) -> None:
    """A planted effect of one field is found; with that field blanked, AUC stays at one half."""
    schema, seen, _ = planted(1, 2048, _generator(8))
    _, unseen, truth = planted(1, 4096, _generator(9))
    label = unseen.labels["click"]
    best = area_under_curve(truth, label)
    for denied, low, high in ((False, best - 0.02, best + 0.02), (True, 0.45, 0.55)):
        model = cls(schema, cls.Config.tiny())
        fit(model, _blanked(seen) if denied else seen, steps=60)
        scores = model.score(_blanked(unseen) if denied else unseen)["click"].detach()
        reached, told = area_under_curve(scores, label), "without" if denied else "with"
        assert low <= reached <= high, f"AUC {told} the field {reached:.3f}, best {best:.3f}"


def _blanked(batch: Batch) -> Batch:
    block = batch.categorical.block.clone()
    block[:, 0] = 0
    return replace(batch, categorical=Columns(batch.categorical.names, block))


def law_untouched(cls: ModelClass) -> None:
    """The batch is not written to, and nothing but dropout draws from the global random state."""
    schema = tiny_schema()
    model, batch = _model(cls, schema), random_batch(schema, 16, _generator(11))
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    before, states = _parts(copy.deepcopy(batch)), _random_states()
    model.score(batch)
    _total(model(batch)).backward()  # type: ignore[no-untyped-call]
    _total(model.train()(batch)).backward()  # type: ignore[no-untyped-call]
    _same(_parts(batch), before, "the batch was written to")
    assert _random_states() == states, "the global random state moved"


def _parts(batch: Batch) -> dict[str, Tensor]:
    named = {"weight": batch.weight, "group": batch.group, "time": batch.time}
    blocks = {"labels": batch.labels.block, "observed": batch.observed.block}
    return {**flatten(batch), **named, **blocks}


def _random_states() -> tuple[object, ...]:
    numpy_state = np.random.get_state(legacy=True)
    return torch.get_rng_state().tolist(), random.getstate(), str(numpy_state)


@torch.no_grad()
def law_export(cls: ModelClass) -> None:
    """Exported scores equal eager ones, for many rows, one row and empty histories."""
    schema, g = tiny_schema(), _generator(12)
    model = _model(cls, schema)
    program = export_program(model, schema, random_batch(schema, 16, g)).module()
    for rows, empty in ((16, False), (1, False), (70, False), (5, True), (1, True)):
        batch = random_batch(schema, rows, g, empty=empty)
        what = f"exported, {rows} rows" + (", empty histories" if empty else "")
        _same(program(flatten(batch)), model.score(batch), what, 1e-6)


@torch.no_grad()
def law_taps(cls: ModelClass) -> None:
    """Taps see what their axes say, `embed` is one of them, and looking changes nothing."""
    schema = tiny_schema()
    model, batch = _model(cls, schema), random_batch(schema, 16, _generator(13))
    blind, seen = model.score(batch), {}
    for name, module in model.named_modules():
        if isinstance(module, Tap):
            module.register_forward_hook(
                lambda tap, _, out, name=name: seen.update({name: (tap.axes.split(), out.shape)})
            )
    _same(model.score(batch), blind, "watched")
    taps = {name for name, module in model.named_modules() if isinstance(module, Tap)}
    assert taps == seen.keys(), f"taps that saw nothing: {sorted(taps - seen.keys())}"
    assert "embed" in taps, f"there is no tap 'embed' among {sorted(taps)}"
    for name, (axes, shape) in seen.items():
        assert len(axes) == len(shape), f"tap '{name}' says {axes} and sees {tuple(shape)}"
        assert axes[0] != "B" or shape[0] == 16, f"tap '{name}' sees {tuple(shape)} for 16 rows"
    assert model.embeddings.fields(batch).shape[0] == 16


LAWS: dict[str, Callable[[ModelClass], None]] = {
    "config": law_config,
    "finite": law_finite,
    "gradients": law_gradients,
    "rows": law_rows,
    "histories": law_histories,
    "labels": law_labels,
    "save": law_save,
    "memory": law_memory,
    "truth": law_truth,
    "untouched": law_untouched,
    "export": law_export,
    "taps": law_taps,
}


def check_law(cls: ModelClass, law: str, seed: int = 0) -> None:
    """Checks one law of `LAWS`, with the global random state of torch forked and seeded.

    Raises:
        AssertionError: the model breaks the law.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        LAWS[law](cls)


def check_model(cls: ModelClass) -> None:
    """Checks every law of `LAWS` on a ranker.

    Args:
        cls: a class with a `Config`, as `fullrank.model.Model` and `Ranker` describe it.

    Raises:
        AssertionError: the model breaks a law.
    """
    for law in LAWS:
        check_law(cls, law)
