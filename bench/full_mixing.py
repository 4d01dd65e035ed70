"""What does learned mixing cost beside RankMixer's, which has no parameters?

    OMP_NUM_THREADS=1 python bench/full_mixing.py [--batch 1024] [--rounds 9] [--sizes NAME ...]

Whole training steps (look-up, forward, backward, Adam) on synthetic ids, at the sizes that the
authors of RankElastor publish. Three comparisons per size, each of a learned against a fixed
mixing:

- "mixing alone": RankMixer as they publish it, and the same model with W x + b in the place of the
  permutation. Nothing else differs.
- "mixing alone, gated": RankElastor, and the same model with a fixed mixing.
- "as published": RankElastor with its gated networks, and RankMixer with its MLPs, equally deep.

Subjects take turns within a round; a ratio is taken within a round, and its median and quartiles
are over rounds, so that a busy neighbour meets both. CPU seconds of one thread.
Last, the mixing module alone against its side: (T D)^2 means a slope of 2 in logarithms.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from record import Record, Target
from torch import nn

from fullrank.batch import Batch
from fullrank.models.rankelastor import RankElastor, RankElastorConfig
from fullrank.models.rankmixer import RankMixer, RankMixerConfig
from fullrank.nn.full_mixing import FullMixing
from fullrank.nn.mixer import MixerBlock
from fullrank.schema import Categorical, Label, Schema, Table
from fullrank.testing.cases import random_batch
from fullrank.train.memory import keep_freed_memory

ROWS_PER_TABLE = 1000
# fields, T, D, width of an embedding, blocks, MLP of the baseline, stages of the gated network
SIZES = {
    "Criteo 26 x 26": (39, 26, 26, 10, 1, (200, 200), (64,)),
    "Criteo 26 x 30": (39, 26, 30, 20, 1, (200, 200), (64,)),
    "Avazu 24 x 48": (24, 24, 48, 16, 4, (400, 400), (64,)),
    "Avazu 24 x 16": (24, 24, 16, 16, 4, (400, 400), (64,)),
    "Avazu 24 x 32": (24, 24, 32, 32, 3, (400, 400), (64,)),
    "Avazu 24 x 64": (24, 24, 64, 64, 5, (400, 400), (64,)),
}
SIDES = (768, 1536, 3072)
LIMIT = 1.3
NOTES = (
    "Where T does not divide D, RankMixer pads, and the fixed mixing beside gated networks is none "
    "at all, which favours it. Only 26 x 26 and 24 x 48 are sizes of the authors' RankMixer; there "
    "its MLPs are (200, 200) and (400, 400), and we keep those at the other sizes of a data set. "
    "The width 64 of the gated stages lies inside their ladder of sizes, with r = 2. `parameters` "
    "compares what is not an embedding table."
)


def main() -> None:
    """Measures, prints, and writes what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES))
    asked = parser.parse_args()
    keep_freed_memory()  # as train() does
    torch.set_num_threads(1)
    record = Record("full_mixing", "Full mixing beside token mixing, one training step")
    for name in asked.sizes:
        record.rows += compare(name, asked.batch, asked.rounds)
    for what in ("mixing alone", "mixing alone, gated", "as published"):
        worst = max(
            (row for row in record.rows if row["comparison"] == what), key=lambda row: row["ratio"]
        )
        text = f"learned over fixed, {what}, worst of the sizes ({worst['size']})"
        record.targets.append(Target(text, worst["ratio"], LIMIT, at_least=False))
    ms, slope = growth(asked.batch, max(3, asked.rounds // 3))
    shown = ", ".join(f"{value:.1f} ms at T D = {side}" for side, value in ms.items())
    record.notes += [
        NOTES,
        f"The mixing alone, forward and backward: {shown}; slope {slope:.2f} against T D in "
        "logarithms, 2 being (T D)^2.",
    ]
    record.finish(detail={"growth_ms": ms, "slope": slope, "batch": asked.batch})


def compare(name: str, rows: int, rounds: int) -> list[dict[str, Any]]:
    """Returns one row per comparison at one size."""
    torch.manual_seed(0)
    fields, T, D, width, blocks, mlp, stages = SIZES[name]
    schema = make_schema(fields)
    batch = random_batch(schema, rows, torch.Generator().manual_seed(0))
    baseline = replace(
        RankMixerConfig.rankelastor_baseline(T, D, mlp), embedding_dim=width, num_blocks=blocks
    )
    elastor = RankElastorConfig.official(
        embedding_dim=width, num_tokens=T, token_dim=D, num_blocks=blocks, hidden_units=stages,
        grouping="vector" if fields * width % T else "matrix",
    )  # fmt: skip
    if D % T:
        baseline = replace(baseline, mix_pad=True)
    fixed = RankElastorConfig.official(
        embedding_dim=width, num_tokens=T, token_dim=D, num_blocks=blocks, hidden_units=stages,
        grouping=elastor.grouping, mix="identity" if D % T else "block_transpose",
    )  # fmt: skip
    models: dict[str, nn.Module] = {
        "rankmixer": RankMixer(schema, baseline),
        "rankmixer, learned": with_full_mixing(RankMixer(schema, baseline), T, D),
        "rankelastor": RankElastor(schema, elastor),
        "rankelastor, fixed": RankElastor(schema, fixed),
    }
    pairs = (
        ("mixing alone", "rankmixer, learned", "rankmixer"),
        ("mixing alone, gated", "rankelastor", "rankelastor, fixed"),
        ("as published", "rankelastor", "rankmixer"),
    )
    taken = clock({key: training_step(model, batch) for key, model in models.items()}, rounds)
    out = []
    for what, ours, theirs in pairs:
        ratios = [a / b for a, b in zip(taken[ours], taken[theirs], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        ms = {k: 1e3 * statistics.median(taken[k]) for k in (ours, theirs)}
        out.append(
            {
                "size": name,
                "comparison": what,
                "learned ms": round(ms[ours], 1),
                "fixed ms": round(ms[theirs], 1),
                "ratio": round(middle, 3),
                "quartiles": f"{low:.3f} to {high:.3f}",
                "parameters": round(dense(models[ours]) / dense(models[theirs]), 2),
            }
        )
    return out


def with_full_mixing(model: RankMixer, T: int, D: int) -> RankMixer:
    """Puts a dense W with a bias where the permutation was."""
    for block in model.modules():
        if isinstance(block, MixerBlock):
            block.mixing = FullMixing(T, D)
    return model


def growth(rows: int, rounds: int) -> tuple[dict[int, float], float]:
    """Returns the milliseconds of the mixing alone for each side T D, and the slope."""
    steps = {}
    for side in SIDES:
        x = torch.randn(rows, 24, side // 24, requires_grad=True)
        steps[str(side)] = both_ways(FullMixing(24, side // 24), x)
    taken = clock(steps, rounds)
    ms = {side: 1e3 * statistics.median(taken[str(side)]) for side in SIDES}
    slope = math.log(ms[SIDES[-1]] / ms[SIDES[0]]) / math.log(SIDES[-1] / SIDES[0])
    return ms, slope


def both_ways(module: nn.Module, x: torch.Tensor) -> Callable[[], None]:
    grad = torch.randn_like(x)

    def run() -> None:
        x.grad = None
        module.zero_grad(set_to_none=True)
        module(x).backward(grad)

    return run


def training_step(model: nn.Module, batch: Batch) -> Callable[[], None]:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)

    def run() -> None:
        optimizer.zero_grad()
        torch.stack(list(model(batch).values())).sum().backward()
        optimizer.step()

    return run


def clock(subjects: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Returns CPU seconds per subject and round; subjects take turns."""
    taken: dict[str, list[float]] = {name: [] for name in subjects}
    for round_ in range(rounds + 2):
        for name, run in subjects.items():
            start = time.process_time()
            run()
            if round_ >= 2:  # the first two warm up
                taken[name].append(time.process_time() - start)
    return taken


def dense(model: nn.Module) -> int:
    """Returns the parameters beside the embedding tables."""
    return sum(p.numel() for n, p in model.named_parameters() if not n.startswith("embeddings"))


def make_schema(fields: int) -> Schema:
    names = [f"field_{i}" for i in range(fields)]
    return Schema(
        tables=tuple(Table(name, ROWS_PER_TABLE) for name in names),
        fields=tuple(Categorical(name, name) for name in names),
        labels=(Label("click"),),
    )


if __name__ == "__main__":
    main()
