"""What share of the machine's float32 matrix-product rate does RankMixer reach?

    OMP_NUM_THREADS=1 python bench/rankmixer_utilisation.py [--threads 1 2] [--json FILE]

Utilisation = floating-point operations of the model's matrix products (forward once, backward
twice) per second, over the best rate of a square product measured in the same run. Norms,
activations, look-ups and page faults count as time but not as operations. Rounds alternate between
all subjects, and medians are reported, so that a busy neighbour meets everyone alike.

CPU seconds are the clock that a shared machine leaves honest; wall seconds stand beside them. With
two threads on a busy machine, set GOMP_SPINCOUNT=0: waiting for a neighbour is not work.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fullrank.batch import Batch, Columns
from fullrank.models.rankmixer import RankMixer, RankMixerConfig
from fullrank.nn.experts import SparseExperts
from fullrank.nn.mixing import AttentionMixing, MultiheadMixing
from fullrank.nn.mlp import MLP, linear
from fullrank.nn.token_ffn import PerTokenFFN
from fullrank.schema import Categorical, Label, Schema, Table
from fullrank.train.memory import keep_freed_memory

FIELDS, ROWS_PER_TABLE, T, D, K, L = 32, 1000, 16, 256, 4, 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    keep_freed_memory()  # as train() does; the products get it too
    results = []
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        results.append(measure(threads, arguments.batch, arguments.rounds))
        show(results[-1])
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")
        print(f"wrote {arguments.json}")


def measure(threads: int, rows: int, rounds: int) -> dict[str, Any]:
    torch.manual_seed(0)
    batch = make_batch(rows)
    subjects: dict[str, tuple[Callable[[], object], float]] = {}
    for size in (1024, 2048):
        subjects[f"gemm {size}"] = gemm(size)
    model = RankMixer(make_schema(), RankMixerConfig(num_tokens=T, token_dim=D, num_blocks=L))
    subjects["rankmixer"] = training_step(model, batch), 3.0 * rows * products(model)
    attention = RankMixerConfig(num_tokens=T, token_dim=D, num_blocks=L, mix="self_attention")
    other = RankMixer(make_schema(), attention)
    scores = 2.0 * 2 * T * T * D * L  # of the attention, beside its weights
    subjects["rankmixer, self_attention"] = (
        training_step(other, batch),
        3.0 * rows * (products(other) + scores),
    )
    for name, parameters in (("equal parameters", count(model)), ("3 M parameters", 3_000_000)):
        branches = MultiBranch(parameters)
        step = training_step(branches, batch), 3.0 * rows * products(branches)
        subjects[f"multi-branch, {name}"] = step
    subjects |= parts(rows)
    times = clock(subjects, rounds)
    peak = max(subjects[name][1] / times[name]["cpu"] for name in subjects if name[:4] == "gemm")
    return {
        "threads": threads,
        "batch": rows,
        "sizes": {"T": T, "D": D, "k": K, "L": L},
        "torch": torch.__version__,
        "machine": platform.processor() or platform.machine(),
        "parameters": {"rankmixer": count(model), "self_attention": count(other)},
        "gemm_gflops_per_cpu_second": round(peak / 1e9, 1),
        "subjects": {
            name: {
                "cpu_ms": round(1e3 * seconds["cpu"], 2),
                "wall_ms": round(1e3 * seconds["wall"], 2),
                "gflop": round(subjects[name][1] / 1e9, 2),
                "utilisation": round(subjects[name][1] / seconds["cpu"] / peak, 3),
            }
            for name, seconds in times.items()
        },
    }


def clock(
    subjects: dict[str, tuple[Callable[[], object], float]], rounds: int
) -> dict[str, dict[str, float]]:
    """Returns median seconds per subject; subjects take turns."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in subjects}
    for round_ in range(rounds + 2):
        for name, (run, _) in subjects.items():
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            if round_ >= 2:  # the first two warm up
                taken[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return {
        name: {
            "wall": statistics.median(wall for wall, _ in pairs),
            "cpu": statistics.median(cpu for _, cpu in pairs),
        }
        for name, pairs in taken.items()
    }


def parts(rows: int) -> dict[str, tuple[Callable[[], object], float]]:
    """Returns the parts of one block, forward and backward, and the experts' two evaluations."""
    x, grad = torch.randn(rows, T, D, requires_grad=True), torch.randn(rows, T, D)

    def both_ways(module: Callable[[Tensor], Tensor]) -> Callable[[], None]:
        def run() -> None:
            x.grad = None
            if isinstance(module, nn.Module):
                module.zero_grad(set_to_none=True)
            module(x).backward(grad)

        return run

    ffn = PerTokenFFN(T, D, (K * D,))
    cost = 3.0 * rows * products(ffn)
    found = {
        "part: per-token FFN": (both_ways(ffn), cost),
        "part: mixing": (both_ways(MultiheadMixing(T, D)), 0.0),
        "part: self-attention": (
            both_ways(AttentionMixing(T, D)),
            3.0 * rows * (2 * 4 * T * D * D + 4 * T * T * D),
        ),
        "part: norm": (both_ways(nn.LayerNorm(D)), 0.0),
    }
    return found | serving_parts(rows)


def serving_parts(rows: int) -> dict[str, tuple[Callable[[], object], float]]:
    """Returns forward passes of experts with an eighth of the gates open, dense and sparse."""
    experts = SparseExperts(T, D, K * D // 8, 8).eval()
    x = torch.randn(rows, T, D)
    gates = torch.rand(rows, T, 8) * (torch.rand(rows, T, 8) < 1 / 8)
    dense = 2.0 * rows * 2 * T * D * K * D

    def no_grad(run: Callable[[Tensor, Tensor], Tensor]) -> Callable[[], None]:
        def call() -> None:
            with torch.no_grad():
                run(x, gates)

        return call

    return {
        "serving: experts, dense": (no_grad(experts.dense), dense),
        "serving: experts, 1/8 active": (no_grad(experts.sparse), dense / 8),
    }


def gemm(size: int) -> tuple[Callable[[], object], float]:
    a, b, out = torch.randn(size, size), torch.randn(size, size), torch.empty(size, size)
    repeats = (4096 // size) ** 3 // 8

    def run() -> None:
        for _ in range(repeats):
            torch.mm(a, b, out=out)

    return run, 2.0 * size**3 * repeats


def training_step(model: nn.Module, batch: Batch) -> Callable[[], None]:
    def run() -> None:
        model.zero_grad(set_to_none=True)
        torch.stack(list(model(batch).values())).sum().backward()

    return run


def products(module: nn.Module) -> float:
    """Returns operations per row of the forward pass: two per weight and use."""
    total = 0.0
    for name, part in module.named_modules():
        if isinstance(part, nn.Linear):
            uses = T if "mixing" in name else 1  # attention projects every token
            total += 2.0 * part.weight.numel() * uses
        elif type(part).__name__ == "PerTokenLinear":
            total += 2.0 * part.get_parameter("weight").numel()
    return total


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


class MultiBranch(nn.Module):
    """A DLRM-like network of many small modules, the shape that RankMixer replaces.

    One bottom network per field, all pairs of inner products, three cross layers of low rank, and
    a top network whose width brings the parameters to a given number: at equal parameters nearly
    all of them lie in two large layers, the easiest thing for a processor; at three million the
    small modules show.
    """

    def __init__(self, parameters: int) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.randn(FIELDS * ROWS_PER_TABLE, 16) * 0.01)
        self.bottoms = nn.ModuleList(MLP(16, (64, 16)) for _ in range(FIELDS))
        self.down = nn.ModuleList(linear(FIELDS * 16, 32) for _ in range(3))
        self.up = nn.ModuleList(linear(32, FIELDS * 16) for _ in range(3))
        width = FIELDS * 16 + FIELDS * (FIELDS - 1) // 2
        spent = count(self)
        hidden = int(((width + 2) ** 2 / 4 + (parameters - spent)) ** 0.5 - (width + 2) / 2)
        self.top = nn.Sequential(MLP(width, (hidden, hidden)), linear(hidden, 1))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Returns the loss."""
        ids = batch.categorical.block + ROWS_PER_TABLE * torch.arange(FIELDS)
        fields = nn.functional.embedding(ids, self.rows)  # [B, F, 16]
        bottoms = zip(self.bottoms, fields.unbind(1), strict=True)
        fields = torch.stack([bottom(field) for bottom, field in bottoms], dim=1)
        x0 = x = fields.flatten(1)
        for down, up in zip(self.down, self.up, strict=True):
            x = x0 * up(down(x)) + x
        i, j = torch.triu_indices(FIELDS, FIELDS, offset=1)
        pairs = torch.bmm(fields, fields.transpose(1, 2))[:, i, j]  # [B, F (F - 1) / 2]
        logit = self.top(torch.cat([x, pairs], dim=1)).squeeze(1)
        loss = nn.functional.binary_cross_entropy_with_logits(logit, batch.labels["click"])
        return {"click": loss}


def make_schema() -> Schema:
    names = [f"field_{i}" for i in range(FIELDS)]
    return Schema(
        tables=tuple(Table(name, ROWS_PER_TABLE) for name in names),
        fields=tuple(Categorical(name, name) for name in names),
        labels=(Label("click"),),
    )


def make_batch(rows: int) -> Batch:
    names = tuple(field.name for field in make_schema().fields)
    return Batch(
        categorical=Columns(
            names, torch.randint(0, ROWS_PER_TABLE, (rows, FIELDS), dtype=torch.int32)
        ),
        numeric=Columns.none(rows, torch.float32),
        labels=Columns(("click",), torch.randint(0, 2, (rows, 1)).float()),
        observed=Columns(("click",), torch.ones(rows, 1, dtype=torch.bool)),
        weight=torch.ones(rows),
        group=torch.zeros(rows, dtype=torch.int64),
        time=torch.zeros(rows, dtype=torch.int64),
    )


def show(result: dict[str, Any]) -> None:
    print(
        f"\n{result['threads']} thread(s), batch {result['batch']}, {result['sizes']}, torch ",
        end="",
    )
    print(f"{result['torch']}; best product {result['gemm_gflops_per_cpu_second']} GFLOP per CPU-s")
    print(f"{'':30}{'cpu ms':>10}{'wall ms':>10}{'GFLOP':>9}{'utilisation':>13}")
    for name, row in result["subjects"].items():
        share = f"{row['utilisation']:13.3f}" if row["gflop"] else f"{'-':>13}"
        print(f"{name:30}{row['cpu_ms']:10.1f}{row['wall_ms']:10.1f}{row['gflop']:9.2f}{share}")


if __name__ == "__main__":
    main()
