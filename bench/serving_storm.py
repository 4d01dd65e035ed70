"""Storms: five times what a server can do, and a worker that is killed while it answers."""

from __future__ import annotations

import os
import signal
import statistics
import time
from collections.abc import Callable

import numpy as np
from record import Record, Target
from serving_cases import Case, many, rank_request
from serving_load import BUSY, Load, Outcome, Plan, Request, wire
from serving_process import Client, Server, cpu_seconds, fullrank_serving

TIMES = 5.0
DEADLINE_MS = 1000.0  # the server's default
_CANDIDATES = 500
_DISTINCT = 1000  # more than are ever on their way at once, so that a mixed-up answer shows
_AFTER_SECONDS, _EVERY_SECONDS = 12.0, 0.1


def overload(load: Load, case: Case, seconds: float) -> Record:
    """Five times the capacity for a while, then quiet."""
    record = Record("serving_overload", f"Serving: {TIMES:g} times what the server can do")
    requests = many(rank_request, case, _DISTINCT, _CANDIDATES)
    with fullrank_serving(case.folder) as server:
        workers = server.workers()
        quiet = probe(server, requests, 3.0)
        calm = statistics.median(ms for _, ms in quiet)
        capacity = load.run(Plan(port=server.port, requests=requests, seconds=5.0)).per_second()
        plan = Plan(
            port=server.port, requests=requests, seconds=seconds, connections=5000,
            rate=TIMES * capacity,
        )  # fmt: skip
        before = server.cpu_seconds()
        running, began = load.start(plan), time.monotonic()
        memory: list[tuple[float, float]] = []
        while not running.done() and time.monotonic() < began + seconds + 60:
            memory.append((time.monotonic() - began, server.resident_mb()))
            time.sleep(0.5)
        found = running.result(timeout=60)
        spent = server.cpu_seconds() - before
        after = probe(server, requests, _AFTER_SECONDS)
        alive = server.workers() == workers and server.process.poll() is None
    _report_storm(record, found, plan, capacity, memory)
    recovered = _recovered(after, 2 * calm)
    record.rows += [
        _row("quiet p50, ms", calm),
        _row("recovered after, s", recovered),
        _row("CPU seconds of the server", spent),
        _row("CPU seconds of the asking process", found.cpu),
        _row("workers died", 0 if alive else 1),
    ]
    record.targets += [
        Target("seconds until latency is below twice the quiet one", recovered, 5.0, False),
        Target("workers died", float(not alive), 0.0, False),
    ]
    record.notes = [
        f"Rankings of {_CANDIDATES} candidates at random times, one worker, deadline "
        f"{DEADLINE_MS:g} ms. Capacity is that of 8 connections that ask without a pause. A client "
        "counts from the moment it sends. An answer is wrong if its id or any byte of it is not "
        f"what this request must get; {_DISTINCT:,} different requests take turns."
    ]
    return record


def _report_storm(
    record: Record,
    found: Outcome,
    plan: Plan,
    capacity: float,
    memory: list[tuple[float, float]],
) -> None:
    waited = 1e3 * (found.done - found.sent)
    served, refused = found.served, np.isin(found.status, BUSY)
    broken = len(found.status) - int(served.sum()) - int(refused.sum())
    in_time = float(np.mean(waited[served] <= DEADLINE_MS)) if served.any() else 0.0
    quick = np.percentile(waited[refused], (50, 99)) if refused.any() else (0.0, 0.0)
    settled = [mb for at, mb in memory if at >= min(10.0, plan.seconds / 2)]
    growth = settled[-1] / settled[0]
    late = float(np.percentile(1e3 * (found.sent - found.planned), 99))
    per_second = float(served.sum()) / found.seconds
    record.rows += [
        _row("capacity, requests per s", capacity),
        _row("asked, requests per s", len(found.status) / plan.seconds),
        _row("served, requests per s", per_second),
        _row("served within their deadline, %", 100 * in_time),
        _row("served p50, ms", float(np.median(waited[served]))),
        _row("served p99, ms", float(np.percentile(waited[served], 99))),
        _row("refused, %", 100 * float(refused.mean())),
        _row("refused p50, ms", float(quick[0])),
        _row("refused p99, ms", float(quick[1])),
        _row("broken connections", broken),
        _row("wrong answers", len(found.wrong)),
        _row("sent later than planned, p99 ms", late),
        _row("resident MB at 10 s", settled[0]),
        _row("resident MB at the end", settled[-1]),
    ]
    record.targets += [
        Target("share of served requests within their deadline", in_time, 0.99),
        Target("share of the capacity that is still served", per_second / capacity, 0.5),
        Target("p99 of a refusal, ms", float(quick[1]), 100.0, False),
        Target("wrong answers", float(len(found.wrong)), 0.0, False),
        Target("broken connections", float(broken), 0.0, False),
        Target("memory at the end over memory at 10 s", growth, 1.05, False),
    ]  # fmt: skip


def kill(load: Load, case: Case, seconds: float) -> Record:
    """SIGKILL of one of two workers while both answer."""
    record = Record("serving_kill", "Serving: one of two workers is killed under load")
    requests, connections = many(rank_request, case, 200, 100), 8
    with fullrank_serving(case.folder, "--workers", "2") as server:
        _until(lambda: len(server.workers()) == 2, 60.0)
        before = server.workers()
        calm = load.run(
            Plan(port=server.port, requests=requests, seconds=seconds, connections=connections)
        )
        plan = Plan(
            port=server.port, requests=requests, seconds=seconds + 25.0, connections=connections
        )
        used = {pid: cpu_seconds(pid) for pid in before}
        running, began = load.start(plan), time.monotonic()
        time.sleep(seconds)
        busiest = max(before, key=lambda pid: cpu_seconds(pid) - used[pid])  # has the connections
        os.kill(busiest, signal.SIGKILL)
        killed = time.monotonic()
        replaced = _until(lambda: _is_replaced(server, busiest), 22.0)
        found = running.result(timeout=120)
        after = server.workers()
    gap = _longest_gap(found, killed - began)
    broken = int((found.status == 0).sum())
    record.rows = [
        _row("requests per s with two workers", calm.per_second()),
        _row("requests per s, all of it", found.per_second()),
        _row("replaced after, s", replaced),
        _row("connections that broke", broken),
        _row(f"of {connections} connections", connections),
        _row("refused", int(np.isin(found.status, BUSY).sum())),
        _row("longest time without an answer, s", gap),
        _row("wrong answers", len(found.wrong)),
        _row("workers at the end", len(after)),
    ]
    record.targets = [
        Target("wrong answers", float(len(found.wrong)), 0.0, False),
        Target("longest time without an answer from the other, s", gap, 1.0, False),
        Target("seconds until two workers answer again", replaced, 20.0, False),
        Target("connections that broke", float(broken), float(connections), False),
    ]
    record.notes = [
        "A connection that breaks is opened again at once. Its request got no answer; a client may "
        "ask again, since nothing that the server does changes anything. Which worker gets a "
        "connection is the kernel's choice; often one gets nearly all. The busier one is killed."
    ]
    return record


def _is_replaced(server: Server, killed: int) -> bool:
    try:
        now = server.workers()
    except (OSError, RuntimeError):  # it may have been the connection to the one that died
        return False
    return len(now) == 2 and killed not in now


def _until(holds: Callable[[], bool], seconds: float) -> float:
    """Waits until something holds; returns how long it took, at most so many seconds."""
    began = time.monotonic()
    while not holds() and time.monotonic() - began < seconds:
        time.sleep(0.1)
    return time.monotonic() - began


def _longest_gap(found: Outcome, killed: float) -> float:
    """Returns the longest time without an answer around and after the kill."""
    times = np.sort(found.done[found.served])
    times = times[times > killed - 0.5]
    return float(np.diff(times).max()) if len(times) > 1 else float("inf")


def probe(server: Server, requests: list[Request], seconds: float) -> list[tuple[float, float]]:
    """Asks every tenth of a second; returns when, and how many milliseconds each took."""
    began, found = time.monotonic(), []
    while (now := time.monotonic() - began) < seconds:
        request = requests[len(found) % len(requests)]
        try:
            with Client(server.port) as client:
                answer = client.ask(wire(request, f"probe-{len(found)}"))
            taken = 1e3 * (time.monotonic() - began - now)
            found.append((now, taken if answer == request.answer else float("inf")))
        except (OSError, RuntimeError):
            found.append((now, float("inf")))
        time.sleep(max(0.0, _EVERY_SECONDS - (time.monotonic() - began - now)))
    return found


def _recovered(found: list[tuple[float, float]], limit: float) -> float:
    """Returns from when on the median of five requests in a row stays below a limit."""
    last = -1.0
    for i in range(len(found) - 4):
        if statistics.median(ms for _, ms in found[i : i + 5]) >= limit:
            last = found[i + 4][0]
    return max(0.0, last)


def _row(what: str, value: float) -> dict[str, object]:
    return {"what": what, "value": value}
