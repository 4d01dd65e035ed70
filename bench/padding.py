"""What does padding cost the models that read a past, and what does each of them cost?

    OMP_NUM_THREADS=1 python bench/padding.py [--rows 512] [--rounds 5]

Training steps (forward and backward, dropout on, no optimiser) on one thread, events of total width
64 and a window of 200. "uniform" has lengths from 1 to 200, all as likely; "heavy tail" a lognormal
with median 20, cut at 200: most pasts are short and a few fill the window. Each is compared with as
many rows whose lengths are all the mean, so that real events are as many: "over equal" is what very
different lengths cost.

FEDIN is compared with one whose window is the mean, because it cannot gain from short pasts: its
transforms have the fixed length of the window, and the complex network on the spectrum of every
channel has the same size whatever the past. Rows of similar length in one bucket would leave that
work as it is. Only the patches of the time branch, a third of a step, could be fewer, and not
without a change: dropout draws its own noise for every empty patch.

Besides: FEDIN's step over DIN's where 100 events fill the window, and for TokenFormer 2F2S (A3)
over 4F with the same gate (A1), rows of 200 events. Subjects take turns within a round; ratios are
taken within a round; medians; CPU seconds.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from dataclasses import replace

import torch
from record import Record, Target
from recurrent import clock
from torch import Tensor, nn

from fullrank.batch import Batch, Jagged
from fullrank.models.dien import DIEN, DIENConfig
from fullrank.models.din import DIN, DINConfig
from fullrank.models.fedin import FEDIN, FEDINConfig
from fullrank.models.sim import SIM, SIMConfig
from fullrank.models.tokenformer import TokenFormer, TokenFormerConfig
from fullrank.schema import Categorical, Label, Schema, Sequence, Table
from fullrank.testing.cases import random_batch
from fullrank.train.memory import keep_freed_memory

WINDOW, SHORT, DIM = 200, 100, 32  # two columns of width 32: 64 per event
MODELS: dict[str, Callable[[Schema], nn.Module]] = {
    "DIN": lambda s: DIN(s, DINConfig(dim=DIM)),
    "DIEN": lambda s: DIEN(s, DIENConfig(dim=DIM)),
    "SIM": lambda s: SIM(s, SIMConfig(dim=DIM)),
    "FEDIN": lambda s: FEDIN(s, FEDINConfig(dim=DIM)),
    "TokenFormer": lambda s: tokenformer(s, "A3"),
}


def main() -> None:
    """Measures, prints, and writes what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    keep_freed_memory()  # as train() does
    record = Record("padding", "Training steps of the models that read a past")
    measure_padding(record, asked.rows, asked.rounds)
    measure_fedin(record, asked.rows, asked.rounds)
    measure_schedules(record, asked.rows, asked.rounds)
    record.notes.append(
        "`ms` is of one step, `events` the mean of a row; `over equal` compares with as many rows "
        "and events in equal lengths. FEDIN's arithmetic is per window and not per event, for its "
        "transforms have the fixed length of the window: it is compared with a window of the mean. "
        "The others compute nothing, or next to nothing, for padding. What is left in DIEN are "
        "the late steps, of few rows and a fixed cost; in TokenFormer attention to the whole past, "
        "which grows with the square of a length and so has more pairs in unequal ones."
    )
    record.finish(detail={"rows": asked.rows, "window": WINDOW, "width": 2 * DIM})


def lengths_of(kind: str, rows: int) -> Tensor:
    """Returns [rows] lengths between 1 and the window."""
    g = torch.Generator().manual_seed(0)
    if kind == "uniform":
        return torch.randint(1, WINDOW + 1, (rows,), generator=g)
    drawn = (3.0 + 1.2 * torch.randn(rows, generator=g)).exp()  # median 20
    return drawn.round().long().clamp(1, WINDOW)


def measure_padding(record: Record, rows: int, rounds: int) -> None:
    """Every model on two laws of lengths, and on equal ones."""
    for kind in ("uniform", "heavy tail"):
        unequal = lengths_of(kind, rows)
        mean = round(float(unequal.float().mean()))
        equal = torch.full_like(unequal, mean)
        subjects = {}
        for name, build in MODELS.items():
            schema = world(WINDOW)
            model = build(schema).train()
            subjects[name] = step(model, batch_of(schema, unequal))
            if name == "FEDIN":
                subjects["same window"] = step(model, batch_of(schema, equal))
                schema = world(mean)
                model = build(schema).train()
            subjects[f"{name} equal"] = step(model, batch_of(schema, equal))
        taken = clock(subjects, rounds)
        for name in MODELS:
            ratio = over(taken[name], taken[f"{name} equal"])
            what = f"{name}, {kind} over equal lengths"
            record.targets.append(Target(what, ratio, 1.3, at_least=False))
            record.rows.append(row(name, kind, mean, taken[name], ratio, taken["DIN"]))
        same = over(taken["FEDIN"], taken["same window"])
        record.notes.append(f"FEDIN, {kind} over equal lengths in the same window: {same:.2f}.")


def measure_fedin(record: Record, rows: int, rounds: int) -> None:
    """FEDIN against DIN where 100 events fill the window."""
    schema = world(SHORT)
    batch = batch_of(schema, torch.full((rows,), SHORT))
    names = ("DIN", "FEDIN")
    taken = clock({n: step(MODELS[n](schema).train(), batch) for n in names}, rounds)
    for name in names:
        record.rows.append(row(name, f"all {SHORT}", SHORT, taken[name], None, taken["DIN"]))
    what = f"a FEDIN step over a DIN step, {SHORT} events of width {2 * DIM}"
    ratio = over(taken["FEDIN"], taken["DIN"])
    record.targets.append(Target(what, ratio, 3.0, at_least=False))


def measure_schedules(record: Record, rows: int, rounds: int) -> None:
    """TokenFormer with windows above (A3) against the whole past in all layers (A1), both gated."""
    schema, subjects = world(WINDOW), {}
    scores: dict[str, int] = {}  # operations of one row
    attention: dict[str, int] = {}  # those of queries, keys, values, gate and output besides
    batch = batch_of(schema, torch.full((rows,), WINDOW))
    for name in ("A1", "A3"):
        model = tokenformer(schema, name).train()
        subjects[name] = step(model, batch)
        N, D, drop_at = model.num_tokens, model.config.dim, model.bfts.drop_at
        layers = model.bfts.flops(N, D)
        tokens = sum(N - len(model.static) * (i >= drop_at) for i in range(len(layers)))
        scores[name] = sum(layers)
        attention[name] = sum(layers) + 10 * D * D * tokens
    taken = clock(subjects, rounds)
    for name, label in (("A1", "TokenFormer 4F"), ("A3", "TokenFormer 2F2S")):
        record.rows.append(row(label, f"all {WINDOW}", WINDOW, taken[name], None, None))
    what = "TokenFormer 2F2S, share of the operations of attention scores of 4F that is saved"
    record.targets.append(Target(what, 1 - scores["A3"] / scores["A1"], 0.15))
    record.notes.append(
        f"TokenFormer 2F2S takes {over(taken['A3'], taken['A1']):.2f} of the time of a step of 4F. "
        "With its projections and gate, attention saves "
        f"{1 - attention['A3'] / attention['A1']:.0%} of its operations."
    )


def row(
    model: str,
    lengths: str,
    events: int,
    seconds: list[float],
    over_equal: float | None,
    of_din: list[float] | None,
) -> dict[str, object]:
    return {
        "model": model,
        "lengths": lengths,
        "events": events,
        "ms": round(1e3 * statistics.median(seconds), 1),
        "over equal": None if over_equal is None else round(over_equal, 2),
        "over DIN": None if of_din is None else round(over(seconds, of_din), 2),
    }


def world(window: int) -> Schema:
    return Schema(
        tables=(Table("items", 5000), Table("kinds", 200), Table("users", 2000)),
        fields=(
            Categorical("user", "users"),
            Categorical("item", "items", "item"),
            Categorical("kind", "kinds", "item"),
        ),
        sequences=(Sequence("past", (("item", "items"), ("kind", "kinds")), window),),
        labels=(Label("click"),),
    )


def tokenformer(schema: Schema, variant: str) -> TokenFormer:
    return TokenFormer(schema, TokenFormerConfig.variant(variant, dim=2 * DIM, embedding_dim=DIM))


def batch_of(schema: Schema, lengths: Tensor) -> Batch:
    g = torch.Generator().manual_seed(1)
    offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    ids = {
        column: torch.randint(0, schema.table(str(table)).size, (int(offsets[-1]),), generator=g)
        for column, table in schema.sequence("past").columns
    }
    drawn = random_batch(schema, len(lengths), g)
    return replace(drawn, sequences={"past": Jagged(ids, offsets)})


def step(model: nn.Module, batch: Batch) -> Callable[[], None]:
    def run() -> None:
        model.zero_grad(set_to_none=True)
        torch.stack(list(model(batch).values())).sum().backward()

    return run


def over(seconds: list[float], others: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(seconds, others, strict=True))


if __name__ == "__main__":
    main()
