"""Requests share forward passes, keep their order and their answers, and are refused in time."""

from __future__ import annotations

import asyncio
import math
import signal
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from fullrank.batch import Batch, Columns
from fullrank.errors import OverloadedError
from fullrank.serve import batching
from fullrank.serve.batching import Batcher, BatchingConfig, stop_if_failed


@pytest.fixture(autouse=True)
def always_in_the_thread(monkeypatch) -> None:
    """A scorer that waits for the test may not do so on the event loop."""
    monkeypatch.setattr(batching, "_SHORT_SECONDS", -1.0)


class Scorer:
    """Returns what a row says, and waits until it may."""

    def __init__(self, seconds_per_row: float = 1e-6) -> None:
        self.batches: list[list[float]] = []
        self.go, self.started = threading.Event(), threading.Event()
        self.go.set()
        self.per_row, self.fails = seconds_per_row, False
        self.threads = 0

    def score(self, batch: Batch) -> dict[str, np.ndarray]:
        self.threads = torch.get_num_threads()
        self.batches.append(batch.weight.tolist())
        self.started.set()
        assert self.go.wait(10)
        if self.fails:
            raise ZeroDivisionError("a model that fails")
        return {"click": batch.weight.numpy(), "buy": -batch.weight.numpy()}

    def seconds(self, rows: int) -> float:
        return rows * self.per_row or 1e-9


def rows(*values: float) -> Batch:
    count, weight = len(values), torch.tensor(values)
    none = torch.zeros(count, dtype=torch.int64)
    return Batch(
        categorical=Columns.none(count, torch.int32),
        numeric=Columns.none(count, torch.float32),
        labels=Columns.none(count, torch.float32),
        observed=Columns.none(count, torch.bool),
        weight=weight,
        group=none,
        time=none,
    )


def batched(test: Callable[[Batcher, Scorer], Any], scorer: Scorer, **settings: Any) -> Any:
    """Runs a coroutine with a batcher, and closes the batcher."""

    async def run() -> Any:
        batcher = Batcher(scorer, BatchingConfig(**settings))
        try:
            return await test(batcher, scorer)
        finally:
            scorer.go.set()
            await batcher.close()

    return asyncio.run(run())


def later(seconds: float = 30.0) -> float:
    return asyncio.get_running_loop().time() + seconds


async def until(started: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not started():
            await asyncio.sleep(0.001)


async def while_busy(batcher: Batcher, scorer: Scorer, *batches: Batch) -> list[Any]:
    """Submits batches while a first one is being scored; returns their answers or errors."""
    scorer.go.clear()
    first = asyncio.create_task(batcher.submit(rows(0), later()))
    await until(scorer.started.is_set)
    tasks = [asyncio.create_task(batcher.submit(b, later())) for b in batches]
    await until(lambda: batcher.waiting_rows == sum(map(len, batches)))
    scorer.go.set()
    return (await asyncio.gather(first, *tasks, return_exceptions=True))[1:]


def test_what_waits_together_is_scored_together_and_each_gets_its_own():
    given = [rows(1), rows(2, 3), rows(4, 5, 6)]
    scorer = Scorer()
    answers = batched(lambda b, s: while_busy(b, s, *given), scorer, threads=1)
    assert scorer.batches == [[0], [1, 2, 3, 4, 5, 6]]
    assert scorer.threads == 1
    assert [a["click"].tolist() for a in answers] == [[1], [2, 3], [4, 5, 6]]
    assert [a["buy"].tolist() for a in answers] == [[-1], [-2, -3], [-4, -5, -6]]


def test_a_forward_pass_is_bounded_and_keeps_the_order_of_arrival():
    given = [rows(1, 2), rows(3, 4), rows(5), rows(*range(10, 20)), rows(6)]
    scorer = Scorer()
    answers = batched(lambda b, s: while_busy(b, s, *given), scorer, max_batch=5)
    assert scorer.batches[1:] == [[1, 2, 3, 4, 5], list(range(10, 20)), [6]]
    assert [a["click"].tolist() for a in answers] == [b.weight.tolist() for b in given]


def test_an_idle_model_waits_only_if_it_is_told_to():
    async def two(batcher: Batcher, scorer: Scorer) -> None:
        first = asyncio.create_task(batcher.submit(rows(1), later()))
        await asyncio.sleep(0.05)
        await asyncio.gather(first, batcher.submit(rows(2), later()))

    at_once, patient = Scorer(), Scorer()
    batched(two, at_once)
    batched(two, patient, max_wait_ms=400)
    assert (at_once.batches, patient.batches) == ([[1], [2]], [[1, 2]])
    full = Scorer()
    batched(two, full, max_wait_ms=60_000, max_batch=2)  # full, so it does not wait a minute
    assert full.batches == [[1, 2]]


def test_more_rows_than_may_wait_are_refused_at_once():
    async def three(batcher: Batcher, scorer: Scorer) -> list[Any]:
        scorer.go.clear()
        first = asyncio.create_task(batcher.submit(rows(0), later()))
        await until(scorer.started.is_set)
        waiting = asyncio.create_task(batcher.submit(rows(1, 2), later()))
        await until(lambda: batcher.waiting_rows == 2)
        with pytest.raises(OverloadedError) as caught:
            await batcher.submit(rows(3, 4), later())
        assert caught.value.retry_seconds >= 1
        fits = asyncio.create_task(batcher.submit(rows(5), later()))
        await until(lambda: batcher.waiting_rows == 3)
        scorer.go.set()
        return await asyncio.gather(first, waiting, fits)

    scorer = Scorer()
    batched(three, scorer, queue_rows=3)
    assert scorer.batches == [[0], [1, 2, 5]]


def test_what_cannot_be_done_before_its_deadline_is_refused_on_arrival():
    async def busy(batcher: Batcher, scorer: Scorer) -> None:
        with pytest.raises(OverloadedError):
            batcher.require_room(1, later(-1))
        batcher.require_room(50, later(0.4))  # nothing is ahead of them
        scorer.go.clear()
        first = asyncio.create_task(batcher.submit(rows(*range(10)), later()))
        await until(scorer.started.is_set)
        with pytest.raises(OverloadedError, match="too busy") as caught:
            await batcher.submit(rows(*range(50)), later(5.9))
        assert 6 <= caught.value.retry_seconds <= 7
        batcher.require_room(50, later(6.1))
        scorer.go.set()
        await first

    scorer = Scorer(seconds_per_row=0.1)  # six seconds for sixty rows
    batched(busy, scorer)
    assert len(scorer.batches) == 1


def test_a_request_that_is_not_read_yet_is_taken_for_one_of_the_usual_size():
    async def ask(batcher: Batcher, scorer: Scorer) -> None:
        batcher.require_any_room(later(0.1))  # nothing is ahead of it
        for _ in range(30):
            await batcher.submit(rows(*[1.0] * 40), later())
        batcher._pace = 1.0
        scorer.go.clear()
        scorer.started.clear()
        waits = asyncio.ensure_future(batcher.submit(rows(*[1.0] * 40), later()))
        await until(scorer.started.is_set)
        batcher.require_room(0, later(5.0))  # 40 rows at a tenth of a second are ahead
        with pytest.raises(OverloadedError):
            batcher.require_any_room(later(5.0))
        batcher.require_any_room(later(9.0))
        scorer.go.set()
        await waits

    batched(ask, Scorer(seconds_per_row=0.1))


def test_a_stall_of_the_machine_is_forgotten():
    async def stalled(batcher: Batcher, scorer: Scorer) -> None:
        batcher._pace = batcher._call_seconds = 1e9
        await batcher.submit(rows(1), later())
        assert await batcher.call(lambda: 3, later()) == 3
        assert max(batcher._pace, batcher._call_seconds) < 0.9e9

    batched(stalled, Scorer())


def test_other_work_is_done_on_the_thread_of_the_model_and_in_time():
    async def other(batcher: Batcher, scorer: Scorer) -> None:
        assert await batcher.call(lambda: threading.current_thread().name, later()) == "scoring_0"
        with pytest.raises(ZeroDivisionError):
            await batcher.call(lambda: 1 // 0, later())
        gate = threading.Event()
        with pytest.raises(OverloadedError, match="not scored in time"):
            await batcher.call(lambda: gate.wait(10), later(0.05))
        batcher._call_seconds = 2.0  # and one is still running
        with pytest.raises(OverloadedError, match="too busy"):
            await batcher.call(lambda: 1, later(3))
        gate.set()
        await until(lambda: batcher._calls == 0)
        assert await batcher.call(lambda: 1, later(1)) == 1

    batched(other, Scorer())


def test_a_deadline_that_passes_while_waiting_is_kept_and_costs_no_forward_pass():
    async def two(batcher: Batcher, scorer: Scorer) -> float:
        scorer.go.clear()
        first = asyncio.create_task(batcher.submit(rows(0), later()))
        await until(scorer.started.is_set)
        began = asyncio.get_running_loop().time()
        with pytest.raises(OverloadedError, match="not scored in time"):
            await batcher.submit(rows(1), later(0.1))
        waited = asyncio.get_running_loop().time() - began
        scorer.go.set()
        await first
        await batcher.submit(rows(2), later())
        return waited

    scorer = Scorer()
    assert 0.1 <= batched(two, scorer) < 5
    assert scorer.batches == [[0], [2]]


def test_the_pace_follows_the_machine():
    async def slow(batcher: Batcher, scorer: Scorer) -> None:
        for _ in range(30):  # a nanosecond a row was promised, and is not kept
            await batcher.submit(rows(1), later())
        scorer.go.clear()
        scorer.started.clear()
        busy = asyncio.create_task(batcher.submit(rows(1), later()))
        await until(scorer.started.is_set)
        with pytest.raises(OverloadedError, match="too busy"):
            await batcher.submit(rows(*range(10_000)), later(0.05))
        scorer.go.set()
        await busy

    batched(slow, Scorer(seconds_per_row=1e-9))


def test_a_model_that_fails_fails_its_requests_and_goes_on():
    async def failing(batcher: Batcher, scorer: Scorer) -> list[Any]:
        scorer.fails = True
        answers = await while_busy(batcher, scorer, rows(1), rows(2))
        scorer.fails = False
        return [*answers, await batcher.submit(rows(3), later())]

    one, two, three = batched(failing, Scorer())
    assert [type(one), type(two)] == [ZeroDivisionError, ZeroDivisionError]
    assert three["click"].tolist() == [3]


def test_closing_answers_what_waits():
    async def run() -> list[Any]:
        scorer = Scorer()
        batcher = Batcher(scorer, BatchingConfig(max_batch=1))
        scorer.go.clear()
        tasks = [asyncio.create_task(batcher.submit(rows(i), later())) for i in range(4)]
        await until(scorer.started.is_set)
        closing = asyncio.create_task(batcher.close())
        await asyncio.sleep(0.01)
        scorer.go.set()
        await closing
        return [a["click"].tolist() for a in await asyncio.gather(*tasks)]

    assert asyncio.run(run()) == [[0], [1], [2], [3]]


def test_many_requests_at_once_get_what_belongs_to_them():
    async def many(batcher: Batcher, scorer: Scorer) -> list[Any]:
        rng = np.random.default_rng(0)
        given = [rows(*(1000 * i + np.arange(rng.integers(1, 9)))) for i in range(300)]
        answers = await asyncio.gather(*(batcher.submit(b, later()) for b in given))
        return [
            a["click"].tolist() == b.weight.tolist() for a, b in zip(answers, given, strict=True)
        ]

    scorer = Scorer()
    assert all(batched(many, scorer, max_batch=64))
    assert len(scorer.batches) < 100


def test_a_process_that_can_no_longer_score_ends(monkeypatch, caplog):
    signals = list[int]()
    monkeypatch.setattr(signal, "raise_signal", signals.append)

    def broken(rows: int, seconds: float) -> None:
        raise ZeroDivisionError("nobody foresaw this")

    async def run() -> None:
        batcher = Batcher(Scorer(), BatchingConfig(), broken)
        with pytest.raises(OverloadedError):
            await batcher.submit(rows(1.0), later(0.3))
        with pytest.raises(ZeroDivisionError):
            await batcher.close()

    asyncio.run(run())
    assert signals == [signal.SIGTERM]
    assert "scoring has failed" in caplog.text


def test_a_process_that_ends_as_it_should_is_left_alone(monkeypatch):
    signals = list[int]()
    monkeypatch.setattr(signal, "raise_signal", signals.append)

    async def done(batcher: Batcher, scorer: Scorer) -> None:
        await batcher.submit(rows(1.0), later())
        endless = asyncio.create_task(asyncio.sleep(99))
        endless.add_done_callback(stop_if_failed)
        endless.cancel()
        await asyncio.gather(endless, return_exceptions=True)

    batched(done, Scorer())
    assert signals == []


def test_short_work_is_done_on_the_event_loop_and_long_work_is_not(monkeypatch):
    monkeypatch.setattr(batching, "_SHORT_SECONDS", 0.01)
    here, seen = threading.get_ident(), list[bool]()

    class Placed(Scorer):
        def score(self, batch: Batch) -> dict[str, np.ndarray]:
            seen.append(threading.get_ident() == here)
            return super().score(batch)

    def work() -> int:
        seen.append(threading.get_ident() == here)
        return 7

    async def ask(batcher: Batcher, scorer: Scorer) -> list[Any]:
        few = await batcher.submit(rows(1.0, 2.0), later())
        many = await batcher.submit(rows(*[3.0] * 20), later())
        called = [await batcher.call(work, later(), s) for s in (0.001, 0.1, math.inf)]
        return [few["click"].tolist(), many["click"].tolist(), called]

    # a row is said to take a millisecond, and takes less: the pace follows what is measured
    few, many, called = batched(ask, Placed(seconds_per_row=1e-3))
    assert (few, many, called) == ([1.0, 2.0], [3.0] * 20, [7, 7, 7])
    assert seen == [True, False, True, False, False]


def test_short_work_waits_for_the_thread_to_be_free(monkeypatch):
    monkeypatch.setattr(batching, "_SHORT_SECONDS", 0.01)
    busy, free, order = threading.Event(), threading.Event(), list[str]()

    def long() -> None:
        busy.set()
        assert free.wait(10)
        order.append("long")

    async def ask(batcher: Batcher, scorer: Scorer) -> None:
        first = asyncio.create_task(batcher.call(long, later()))
        await until(busy.is_set)
        second = asyncio.create_task(batcher.call(lambda: order.append("short"), later(), 1e-6))
        await asyncio.sleep(0.05)
        assert order == []
        free.set()
        await asyncio.gather(first, second)

    batched(ask, Scorer())
    assert order == ["long", "short"]


def test_short_work_that_fails_fails_alone(monkeypatch):
    monkeypatch.setattr(batching, "_SHORT_SECONDS", 0.01)

    async def ask(batcher: Batcher, scorer: Scorer) -> Any:
        scorer.fails = True
        with pytest.raises(ZeroDivisionError):
            await batcher.submit(rows(1.0), later())
        with pytest.raises(ZeroDivisionError):
            await batcher.call(lambda: 1 // 0, later(), 1e-6)
        scorer.fails = False
        return await batcher.submit(rows(5.0), later())

    assert batched(ask, Scorer())["click"].tolist() == [5.0]


def test_requests_that_arrived_together_share_a_block_that_has_room():
    class Blocks(Scorer):
        def seconds(self, rows: int) -> float:
            return 1e-4 * -(-rows // 4)  # blocks of four rows

    async def ask(batcher: Batcher, scorer: Scorer) -> None:
        loop, asked = asyncio.get_running_loop(), list[asyncio.Task[Any]]()

        def arrive(left: int) -> None:
            """One more request in each turn of the loop, as from sockets."""
            asked.append(loop.create_task(batcher.submit(rows(float(left)), later())))
            if left:
                loop.call_soon(arrive, left - 1)

        arrive(5)
        while len(asked) < 6:
            await asyncio.sleep(0)
        await asyncio.gather(*asked)

    scorer = Blocks()
    batched(ask, scorer)
    assert len(scorer.batches[0]) == 4  # and not the one that came first
    assert sorted(x for batch in scorer.batches for x in batch) == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
