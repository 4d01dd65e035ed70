"""The server under load: latency, throughput, caching, overload, and a worker that is killed.

    python bench/peers.py --setup        # once: the environment of the FastAPI handler
    python bench/serving.py

The server runs in processes of its own and is asked over real sockets by another one. Every answer
is compared with the one that the artefact gives offline, to the byte. Contestants take turns;
figures are medians over all turns. CPU times count all threads of the server: on a machine whose
cores are shared they say more than wall times.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from record import Record, Target
from serving_cases import (
    CASES,
    FOLDER,
    Case,
    data_root,
    make_case,
    many,
    rank_request,
    score_request,
)
from serving_load import Load, Plan, Request, loading, wire
from serving_process import Client, Server, free_port, fullrank_serving, serving
from serving_storm import kill, overload

from fullrank.serve import arrow_body
from fullrank.serve.engine import Engine
from fullrank.serve.retrieval import ItemIndex
from fullrank.train.memory import keep_freed_memory

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "peers"))

import environments  # noqa: E402

CANDIDATES = 500
EVERY_ROW = "every row with its user"
SIZES = (1, 20, 100, 500)
PARTS = ("latency", "tail", "fastapi", "caching", "overload", "kill")


def main() -> None:
    options = parse()
    torch.set_num_threads(1)
    keep_freed_memory()  # as the server does: the bare pass is no slower for want of it
    with loading() as load:
        parts: dict[str, Callable[[], Record]] = {
            "latency": lambda: latency(options),
            "tail": lambda: tail(load, options),
            "fastapi": lambda: against_fastapi(load, options),
            "caching": lambda: caching(load, options),
            "overload": lambda: overload(load, make_case("frappe_dcnv2"), options.storm_seconds),
            "kill": lambda: kill(load, make_case("frappe_dcnv2"), options.seconds),
        }
        for name in options.parts:
            record = parts[name]()
            real = "Frappe and simulated" if data_root()[1] else "simulated"
            record.machine |= {"server threads": 1, "data": real}
            record.finish()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="*", default=PARTS, choices=PARTS, metavar="PART")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--calls", type=int, default=200, help="of each kind for a latency")
    parser.add_argument("--seconds", type=float, default=3.0, help="of a turn under load")
    parser.add_argument("--storm-seconds", type=float, default=60.0)
    return parser.parse_args()


# ---- one request, against the bare model


def latency(options: argparse.Namespace) -> Record:
    """One request with 500 candidates at a time, in turn with the model on ready tensors."""
    record = Record("serving_latency", "Serving: one request with 500 candidates on an idle server")
    for name in CASES:
        case = make_case(name)
        with fullrank_serving(case.folder) as server, Client(server.port) as client:
            for body in ("JSON", "Arrow"):
                row = one_at_a_time(case, server, client, body == "Arrow", options.calls)
                record.rows.append({"case": name, "body": body} | row)
                if body == "JSON":
                    for of in ("p50", "CPU"):
                        what, ratio = (
                            f"{name}: {of} over the bare forward pass",
                            row[f"{of} over bare"],
                        )
                        record.targets.append(Target(what, ratio, 1.5, at_least=False))
    record.notes = [
        "All times are milliseconds. The bare pass is one call of the model on the 500 rows as "
        "ready tensors, between any two requests. Decode, encode and score are the same functions "
        "timed in this process; the rest is HTTP, the way to the thread of the model and back, and "
        "the answer.",
    ]
    record.machine |= {"calls": options.calls}
    return record


def one_at_a_time(
    case: Case, server: Server, client: Client, arrow: bool, calls: int
) -> dict[str, Any]:
    """Returns medians in milliseconds."""
    engine = case.engine
    requests = [rank_request(case, CANDIDATES, seed, arrow) for seed in range(10)]
    asked = [wire(r, f"r{i}") for i, r in enumerate(requests)]
    ready = [engine.encode_rank(*decoded(engine, r.body, arrow)) for r in requests]
    model: Any = engine.predictor.model
    times = Times()
    with torch.inference_mode():
        for call in range(calls + 10):
            if call == 10:  # the first ones warm up
                times = Times()
            i = call % 10
            with times.of("CPU", server.cpu_seconds), times.of("p50"):
                answer = client.ask(asked[i])
            assert answer == requests[i].answer, "a wrong answer"
            with times.of("bare CPU", time.process_time), times.of("bare"):
                model.score(ready[i])
    for call in range(calls):
        body = requests[call % 10].body
        with times.of("decode"):
            given = decoded(engine, body, arrow)
        with times.of("encode"):
            batch = engine.encode_rank(*given)
        with times.of("score"):
            engine.score(batch)
    stages = {stage: times.middle(stage) for stage in ("decode", "encode", "score")}
    p50, bare = times.middle("p50"), times.middle("bare")
    return {
        "p50": p50,
        "bare": bare,
        "p50 over bare": p50 / bare,
        "CPU over bare": times.mean("CPU") / times.mean("bare CPU"),
        **stages,
        "rest": p50 - sum(stages.values()),
        "body kB": len(requests[0].body) / 1e3,
    }


def decoded(engine: Engine, body: bytes, arrow: bool) -> Any:
    """Returns user and candidates of a body."""
    if arrow:
        return arrow_body.read_streams(body, 2, engine.wire.max_rows)
    return engine.wire.rank_request(body)


class Times:
    """Milliseconds by what they were spent on."""

    def __init__(self) -> None:
        self._taken: dict[str, list[float]] = {}

    @contextmanager
    def of(self, what: str, clock: Callable[[], float] = time.perf_counter) -> Iterator[None]:
        """Measures a block."""
        began = clock()
        yield
        self._taken.setdefault(what, []).append(1e3 * (clock() - began))

    def middle(self, what: str) -> float:
        """Returns the median."""
        return statistics.median(self._taken[what])

    def mean(self, what: str) -> float:
        """Returns the mean."""
        return statistics.mean(self._taken[what])


# ---- the slowest of many


def tail(load: Load, options: argparse.Namespace) -> Record:
    """Latency at half of the largest throughput, requests at random times."""
    record = Record("serving_tail", "Serving: latency at half of the largest throughput")
    for name, rows in (("frappe_dcnv2", CANDIDATES), ("frappe_dcnv2", 20), ("two_tower", 100)):
        case = make_case(name)
        requests = many(rank_request, case, 100, rows)
        with fullrank_serving(case.folder) as server:
            most = statistics.median(
                load.run(Plan(port=server.port, requests=requests, seconds=options.seconds))
                .per_second()
                for _ in range(options.turns)
            )  # fmt: skip
            p50, p99, wrong = [], [], list[str]()
            for turn in range(options.turns):
                found = load.run(
                    Plan(
                        port=server.port,
                        requests=requests,
                        seconds=2 * options.seconds,
                        connections=200,
                        rate=most / 2,
                        seed=turn + 1,
                    )
                )
                p50.append(found.latency_ms(50))
                p99.append(found.latency_ms(99))
                wrong += found.wrong
        middle = statistics.median(b / a for a, b in zip(p50, p99, strict=True))
        record.rows.append(
            {
                "case": name, "candidates": rows, "most requests per s": most,
                "p50 ms": statistics.median(p50), "p99 ms": statistics.median(p99),
                "p99 over p50": middle, "wrong answers": len(wrong),
            }
        )  # fmt: skip
        what = f"{name}, {rows} candidates: p99 over p50"
        record.targets.append(Target(what, middle, 3.0, at_least=False))
    record.notes = [
        "The most is that of 8 connections that ask without a pause. At half of it, requests come "
        "at times drawn from a Poisson process of fixed seed, whatever the server does, and a "
        "latency counts from the planned time."
    ]
    return record


# ---- the handler that one would write first


def against_fastapi(load: Load, options: argparse.Namespace) -> Record:
    """Throughput, beside FastAPI and pydantic calling the same model once per request."""
    record = Record("serving_fastapi", "Serving: throughput beside FastAPI and pydantic")
    if not environments.is_ready("fastapi"):
        record.notes = ["Not measured: python bench/peers.py --setup makes the environment."]
        return record
    case, port = make_case("frappe_dcnv2"), free_port()
    peer = [str(environments.python_of("fastapi")), str(HERE / "peers" / "serve_fastapi.py")]
    with (
        fullrank_serving(case.folder) as ours,
        serving([*peer, str(case.folder), "--port", str(port)], port, "/readyz") as theirs,
    ):
        for rows in SIZES:
            requests = many(score_request, case, 60, rows)
            ways: dict[str, tuple[Server, list[Request]]] = {"fullrank": (ours, requests)}
            for encoding in ("polars", "dictionaries"):
                same = [Request(f"/v1/{encoding}", r.body, b"", rows) for r in requests]
                require_same(theirs, same[0], requests[0])
                ways[f"FastAPI, {encoding}"] = (theirs, same)
            rates = in_turn(load, ways, options)
            compare(record, rates, f"{rows} rows", list(ways)[1:])
    record.notes = [
        "16 connections ask without a pause. Both servers are one uvicorn worker with llhttp and "
        "one thread of torch. The FastAPI handler is `async`, has a pydantic model of a row and of "
        "the answer, makes tensors by the featurizer of training (polars) or by a dictionary per "
        "column, and calls the model once, on just the rows of the request. The latter is possible "
        "for a log of categories alone, and no way that the library offers. With 500 rows nearly "
        "all of the time is the model's, which both servers run alike.",
    ]
    record.machine |= {"turns": options.turns, "seconds of a turn": options.seconds}
    return record


def require_same(server: Server, asked: Request, ours: Request) -> None:
    """Sees that a peer runs the same model: equal probabilities, up to rounding."""
    with Client(server.port) as client:
        found = msgspec.json.decode(client.ask(wire(asked, "same")))["scores"]
    expected = msgspec.json.decode(ours.answer)["scores"]
    for label, values in expected.items():
        assert np.allclose(found[label], values, atol=1e-6), "the peer scores otherwise"


Rates = dict[str, list[tuple[float, float]]]


def in_turn(
    load: Load, ways: dict[str, tuple[Server, list[Request]]], options: argparse.Namespace
) -> Rates:
    """Returns way -> (requests per second, requests per CPU second) of every turn."""
    rates: Rates = {way: [] for way in ways}
    for turn in range(options.turns + 1):
        for way, (server, requests) in ways.items():
            seconds = options.seconds if turn else 0.5
            before = server.cpu_seconds()
            plan = Plan(port=server.port, requests=requests, seconds=seconds, connections=16)
            found = load.run(plan)
            cpu = server.cpu_seconds() - before
            assert not found.wrong, found.wrong[:3]
            if turn:  # the first one warms up
                served = float(found.served.sum())
                rates[way].append((found.per_second(), served / cpu))
    return rates


def compare(record: Record, rates: Rates, what: str, promised: Sequence[str]) -> None:
    """Adds a row per way, and the promise that the first is twice as fast as some of them."""
    medians = {
        way: tuple(statistics.median(r[i] for r in taken) for i in (0, 1))
        for way, taken in rates.items()
    }
    first = next(iter(medians))
    ours = medians[first]
    for way, (wall, cpu) in medians.items():
        record.rows.append(
            {
                "requests": what, "way": way, "per s": wall, "per CPU s": cpu,
                "first is faster by": ours[0] / wall, "by CPU": ours[1] / cpu,
            }
        )  # fmt: skip
    for i, unit in enumerate(("second", "CPU second")):
        for way in promised:
            text = f"{what}: requests per {unit} of {first} over those of {way}"
            record.targets.append(Target(text, ours[i] / medians[way][i], 2.0))


# ---- what is known of the items beforehand


def caching(load: Load, options: argparse.Namespace) -> Record:
    """Rankings by a model of two sides, with and without what is known beforehand."""
    record = Record("serving_caching", "Serving: 500 candidates through a model of two sides")
    whole, plain = make_case("two_tower", "two_tower_index"), make_case("two_tower")
    items = whole.rows.select(whole.item_columns).unique(whole.engine.wire.spec.item)
    index = ItemIndex.build(whole.engine.predictor, items)
    index.save(whole.folder, whole.engine.fingerprint)
    catalogue = Case("two_tower", plain.folder, plain.engine, plain.rows)
    ranked = many(rank_request, catalogue, 60, CANDIDATES)
    scored = many(score_request, catalogue, 60, CANDIDATES)
    with ExitStack() as stack:
        known = stack.enter_context(fullrank_serving(whole.folder))
        alone = stack.enter_context(fullrank_serving(plain.folder))
        rates = in_turn(
            load,
            {
                "user once, items from the index": (known, ranked),
                "user once, items through the model": (alone, ranked),
                EVERY_ROW: (alone, scored),
            },
            options,
        )
    compare(record, rates, f"{CANDIDATES} candidates", [EVERY_ROW])
    record.notes = [
        "16 connections ask without a pause, JSON bodies. All ways give the same scores to the "
        "bit. The last sends, encodes and runs the user with every row; it is `/v1/score`.",
        f"The index has {len(index):,} items, in {FOLDER.name}/{whole.folder.name}.",
    ]
    record.machine |= {"turns": options.turns, "seconds of a turn": options.seconds}
    return record


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
