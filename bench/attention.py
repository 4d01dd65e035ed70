"""How does attention cost grow with the history: full below and windows above, or full throughout?

    OMP_NUM_THREADS=1 python bench/attention.py [--events 64 ... 4096] [--rounds 3] [--out FILE]

The attention of four layers (queries, keys and values ready; rotary turns left out), forward and
backward, over N = 12 fields + events + 3 tokens, about 4,096 tokens per batch. "2F2S" is two layers
with the whole past and two with windows 32 and 16 without the field tokens; "4F" four with the
whole past; "causal" four calls of the library's own causal attention, on rows without padding. A
quarter of the events of the other two are padding. "sliding" is one sliding layer.

Time is CPU seconds of one thread; subjects take turns. Memory is how far the resident set of a
fresh process rises, forward and backward, above its inputs. --out writes a chart.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from record import Record, Target
from torch import Tensor

from fullrank.chart import Series, line_chart
from fullrank.nn.windowed_attention import full_attention, sliding_attention
from fullrank.train.memory import keep_freed_memory

FIELDS, REST, HEADS, WIDTH, WINDOWS, TOKENS = 12, 3, 4, 16, (32, 16), 4096
EVENTS = (64, 128, 256, 512, 1024, 2048, 4096)
SUBJECTS = ("2F2S", "4F", "causal", "sliding")


def main() -> None:
    """Measures, prints, and writes what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--events", type=int, nargs="+", default=list(EVENTS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="an SVG file, such as docs/results/attention.svg")
    asked = parser.parse_args()
    torch.set_num_threads(1)  # and of the children
    keep_freed_memory()  # as train() does
    record = Record("attention", "Attention of four layers by length of the history")
    # Memory first: children of a process that has computed nothing begin with nothing.
    peaks = {events: measured_memory(events) for events in asked.events}
    record.rows = [{**measured_time(n, asked.rounds), **peaks[n]} for n in asked.events]
    banded = [row for row in record.rows if row["events"] >= 128]  # shorter ones are masked
    for what in ("sliding us", "sliding MiB") if len(banded) > 1 else ():
        first, last = banded[0], banded[-1]
        grown = last[what] / first[what]  # batches hold about equally many tokens
        slope = math.log(grown) / math.log(last["events"] / first["events"])
        text = f"{what} per token, slope against events in logarithms (0 is linear cost)"
        record.targets.append(Target(text, slope, 0.1, at_least=False))
    record.notes.append(
        "Microseconds are per 1,000 tokens and MiB per batch. `2F2S/4F` and `2F2S/causal` are "
        "ratios of time."
    )
    record.finish(detail={"windows": WINDOWS, "heads": HEADS, "width": WIDTH})
    if asked.out is not None:
        asked.out.write_text(chart(record.rows))


def measured_memory(events: int) -> dict[str, float]:
    """Returns MiB per subject, each from a process of its own: a peak never falls."""
    with multiprocessing.get_context("fork").Pool(1, maxtasksperchild=1) as pool:
        peaks = pool.map(peak, [(name, events) for name in SUBJECTS], chunksize=1)
    return {f"{name} MiB": mib for name, mib in zip(SUBJECTS, peaks, strict=True)}


def measured_time(events: int, rounds: int) -> dict[str, Any]:
    """Returns one line of the table, without memory."""
    taken: dict[str, list[float]] = {name: [] for name in SUBJECTS}
    steps = {name: step(name, events) for name in SUBJECTS}
    for round_ in range(rounds + 1):
        for name, run in steps.items():
            start = time.process_time()
            run()
            if round_:  # the first warms up
                taken[name].append(time.process_time() - start)
    rows, tokens = shape(events)
    us = {n: 1e9 * statistics.median(t) / (rows * tokens) for n, t in taken.items()}
    return {
        "events": events,
        "tokens": rows * tokens,
        **{f"{name} us": us[name] for name in SUBJECTS},
        "2F2S/4F": us["2F2S"] / us["4F"],
        "2F2S/causal": us["2F2S"] / us["causal"],
    }


def shape(events: int) -> tuple[int, int]:
    """Returns rows of the batch and tokens of a row."""
    tokens = FIELDS + events + REST
    return max(1, round(TOKENS / tokens)), tokens


def step(name: str, events: int) -> Callable[[], None]:
    """Returns what runs the attention of all layers once, forward and backward."""
    rows, tokens = shape(events)
    everything, behind_fields = leaves(rows, tokens), leaves(rows, tokens - FIELDS)
    q, k, v, grad = everything
    valid = torch.ones(rows, tokens, dtype=torch.bool)
    valid[:, FIELDS : FIELDS + events // 4] = False  # behind the fields: the newest event is last

    def sliding(window: int) -> None:
        *cut, grad = behind_fields
        sliding_attention(*cut, valid=valid[:, FIELDS:], window=window).backward(grad)

    def full() -> None:
        full_attention(q, k, v, valid).backward(grad)

    def causal() -> None:
        F.scaled_dot_product_attention(q, k, v, is_causal=True).backward(grad)

    layers: dict[str, list[Callable[[], Any]]] = {
        "2F2S": [full, full, *(lambda w=w: sliding(w) for w in WINDOWS)],
        "4F": [full] * 4,
        "causal": [causal] * 4,
        "sliding": [lambda: sliding(WINDOWS[0])],
    }

    def run() -> None:
        for layer in layers[name]:
            for leaf in (*everything, *behind_fields):
                leaf.grad = None
            layer()

    return run


def leaves(rows: int, tokens: int) -> list[Tensor]:
    """Returns queries, keys, values and a gradient, heads side by side as a projection has them."""
    draw = torch.Generator().manual_seed(0)
    wanted = (torch.randn(rows, tokens, HEADS, WIDTH, generator=draw) for _ in range(4))
    q, k, v, grad = (x.transpose(1, 2) for x in wanted)
    return [q.requires_grad_(), k.requires_grad_(), v.requires_grad_(), grad]


def peak(case: tuple[str, int]) -> float:
    """Returns by how many MiB the resident set rises; for a process that has done nothing else."""
    small = step(case[0], 16)
    small()  # loads the kernels
    run = step(*case)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def chart(rows: list[dict[str, Any]]) -> str:
    """Draws the time per token."""
    names = {
        "4F": "4F",
        "causal": "4 x PyTorch causal, no padding",
        "2F2S": "2F2S, windows 32 and 16",
        "sliding": "one sliding layer, window 32",
    }
    events = [row["events"] for row in rows]
    series = [
        Series(text, events, [row[f"{name} us"] for row in rows], marks=True)
        for name, text in names.items()
    ]
    return line_chart(
        series,
        title="Attention, forward and backward, one thread",
        x="events in the history",
        y="microseconds per 1,000 tokens",
        log_x=True,
        log_y=True,
    )


if __name__ == "__main__":
    main()
