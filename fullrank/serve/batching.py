"""Batching: requests that wait at the same time share one forward pass.

While the model is busy, requests gather; when it is free, it takes as many as fit, in the order in
which they came. An idle server therefore answers at once, and a busy one in ever larger batches,
without a waiting time to tune. What cannot be done before its deadline is refused on arrival.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import signal
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Protocol, TypeVar

import numpy as np
import torch

from fullrank.batch import Batch
from fullrank.errors import OverloadedError
from fullrank.serve.engine import concatenated

log = logging.getLogger("fullrank.serve")
Scores = dict[str, np.ndarray]
T = TypeVar("T")
_MOST_RETRY_SECONDS = 60.0
# Work that takes less than this is done on the event loop: a thread of its own costs both of them
# the time in which they wait for one another, a third of a small request, and frees too little.
_SHORT_SECONDS = 0.01
_NEWEST = 0.2  # weight of the newest measurement of the pace


def stop_if_failed(task: asyncio.Task[Any]) -> None:
    """Ends the process when one of its endless tasks fails; whoever watches it begins another.

    It would go on without that task, look healthy, and let every request wait until its deadline.
    """
    if not task.cancelled() and (error := task.exception()):
        log.critical("stopping: %s has failed", task.get_name(), exc_info=error)
        signal.raise_signal(signal.SIGTERM)


class Scorer(Protocol):
    """What a Batcher asks of an engine."""

    def score(self, batch: Batch) -> Scores:
        """Returns label -> probabilities [B]."""
        ...

    def seconds(self, rows: int) -> float:
        """Returns how long so many rows took on a quiet machine."""
        ...


@dataclass(frozen=True, kw_only=True)
class BatchingConfig:
    """How requests wait.

    Args:
        max_batch: rows of one forward pass; a single request may be larger.
        max_wait_ms: how long an idle model waits for company. It pays only where requests are tiny
            and come in bursts.
        queue_rows: rows that may wait; more are refused.
        threads: of torch.
    """

    max_batch: int = 1024
    max_wait_ms: float = 0.0
    queue_rows: int = 20_000
    threads: int = 1


@dataclass(eq=False)
class _Job:
    batch: Batch
    deadline: float  # by the clock of the event loop
    answer: asyncio.Future[Scores]


class Batcher:
    """One model on one thread, and the requests that wait for it.

    Args:
        scorer: scores batches.
        config: limits.
        seen: is told the rows and seconds of every forward pass.
    """

    def __init__(
        self,
        scorer: Scorer,
        config: BatchingConfig,
        seen: Callable[[int, float], None] = lambda rows, seconds: None,
    ) -> None:
        self.scorer, self.config, self._seen = scorer, config, seen
        self.waiting_rows = 0
        self._running_rows, self._usual_rows = 0, 0.0
        self._in_thread = 0  # pieces of work
        self._calls, self._call_seconds = 0, 0.0  # that wait or run, and how long one took
        self._pace = 1.0  # seconds that a batch takes / seconds that it took on a quiet machine
        self._jobs: deque[_Job] = deque()
        self._wake = asyncio.Event()
        self._closing = False
        self._pool = ThreadPoolExecutor(
            1, "scoring", initializer=torch.set_num_threads, initargs=(config.threads,)
        )
        self._task = asyncio.get_running_loop().create_task(self._run(), name="scoring")
        self._task.add_done_callback(stop_if_failed)

    def require_room(self, rows: int, deadline: float) -> None:
        """Refuses rows that would not be scored in time, given what is ahead of them.

        An idle model takes whatever comes: were its last measurement a stall of the machine, it
        would otherwise never measure again.

        Args:
            rows: of a request.
            deadline: by the clock of the event loop.

        Raises:
            OverloadedError: with the seconds until there may be room.
        """
        ahead = self.waiting_rows + self._running_rows
        calls = self._calls * self._call_seconds
        wait = calls + self._pace * self.scorer.seconds(ahead + rows)
        now = asyncio.get_running_loop().time()
        full = self.waiting_rows and self.waiting_rows + rows > self.config.queue_rows
        busy = ahead or self._calls
        if full or now > deadline or (busy and now + wait > deadline):
            raise OverloadedError(
                "the server is too busy for this request",
                retry_seconds=max(1, math.ceil(min(wait, _MOST_RETRY_SECONDS))),
                where="the queue",
                found=f"{ahead:,} rows ahead, {wait * 1e3:,.0f} ms of work with this request",
                expected=f"{max(0.0, deadline - now) * 1e3:,.0f} ms of work",
                fix="ask again later, with fewer rows, or with a longer deadline",
            )

    def require_any_room(self, deadline: float) -> None:
        """Refuses a request that is not read yet, were it one of the usual size.

        While more comes than can be done, there is nearly always room for no rows at all; reading
        requests in order to refuse them would take the time of those that are not.

        Raises:
            OverloadedError: with the seconds until there may be room.
        """
        self.require_room(round(self._usual_rows), deadline - self._one_call())

    async def submit(self, batch: Batch, deadline: float) -> Scores:
        """Scores a batch, together with whatever else waits.

        Args:
            batch: rows of one request.
            deadline: by the clock of the event loop.

        Raises:
            OverloadedError: it would not be, or was not, scored before its deadline.
        """
        self._usual_rows += _NEWEST * (len(batch) - self._usual_rows)
        self.require_room(len(batch), deadline)
        job = _Job(batch, deadline, asyncio.get_running_loop().create_future())
        self._jobs.append(job)
        self.waiting_rows += len(batch)
        self._wake.set()
        try:
            async with asyncio.timeout_at(deadline):
                return await job.answer
        except TimeoutError as cause:
            raise _too_late(len(batch)) from cause

    async def call(self, work: Callable[[], T], deadline: float, seconds: float = math.inf) -> T:
        """Does work of another kind on the thread of the model, such as searching an index.

        Args:
            work: returns the answer.
            deadline: by the clock of the event loop.
            seconds: what it takes at most on a quiet machine, if that is known.

        Raises:
            OverloadedError: it would not be, or was not, done before its deadline.
        """
        self.require_room(0, deadline - self._one_call())
        self._calls += 1

        def timed() -> T:
            began = perf_counter()
            try:
                return work()
            finally:
                seconds = perf_counter() - began
                self._call_seconds += _NEWEST * (seconds - self._call_seconds)

        done = self._started(timed, seconds)
        done.add_done_callback(self._called)
        try:
            async with asyncio.timeout_at(deadline):
                return await asyncio.shield(done)
        except TimeoutError as cause:
            raise _too_late(0) from cause

    def _started(self, work: Callable[[], T], seconds: float) -> asyncio.Future[T]:
        """Does work on the thread of the model, or here and now if it is short."""
        loop = asyncio.get_running_loop()
        if self._in_thread or self._pace * seconds > _SHORT_SECONDS:
            self._in_thread += 1
            done = loop.run_in_executor(self._pool, work)
            done.add_done_callback(self._left_thread)
            return done

        async def here() -> T:
            return work()

        return loop.create_task(here())

    def _left_thread(self, done: asyncio.Future[Any]) -> None:
        self._in_thread -= 1

    def _one_call(self) -> float:
        return self._call_seconds if self._calls else 0.0

    def _called(self, done: asyncio.Future[Any]) -> None:
        self._calls -= 1
        if not done.cancelled():
            done.exception()  # seen, also where nobody waits any more

    async def close(self) -> None:
        """Ends after every request that waits has been answered."""
        self._closing = True
        self._wake.set()
        await self._task
        self._pool.shutdown()

    async def _run(self) -> None:
        while self._jobs or not self._closing:
            if not self._jobs:
                self._wake.clear()
                await self._wake.wait()
                await self._gather()
            await self._fill()
            if jobs := self._taken():
                await self._answer(jobs)

    async def _fill(self) -> None:
        """Lets requests be read that have arrived by now, while further rows cost nothing.

        A model scores one row in a block that has room for many.
        """
        seen = 0
        while seen < len(self._jobs) and self.scorer.seconds(
            self.waiting_rows + 1
        ) <= self.scorer.seconds(1):
            seen = len(self._jobs)
            await asyncio.sleep(0)

    async def _gather(self) -> None:
        """Waits for company after the first request."""
        loop = asyncio.get_running_loop()
        until = loop.time() + self.config.max_wait_ms / 1e3
        while self.waiting_rows < self.config.max_batch and not self._closing:
            if (left := until - loop.time()) <= 0:
                return
            self._wake.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), left)

    def _taken(self) -> list[_Job]:
        """Takes the oldest requests that fit into one forward pass and still have time."""
        now, rows, jobs = asyncio.get_running_loop().time(), 0, list[_Job]()
        while self._jobs and (not jobs or rows + len(self._jobs[0].batch) <= self.config.max_batch):
            job = self._jobs.popleft()
            self.waiting_rows -= len(job.batch)
            if not job.answer.done() and job.deadline > now:
                jobs.append(job)
                rows += len(job.batch)
        self._running_rows = rows
        return jobs

    async def _answer(self, jobs: list[_Job]) -> None:
        rows = self._running_rows
        began = perf_counter()
        work = self._started(lambda: self._scored(jobs), self.scorer.seconds(rows))
        scored = await asyncio.gather(work, return_exceptions=True)
        seconds = perf_counter() - began
        self._running_rows = 0
        self._pace += _NEWEST * (seconds / self.scorer.seconds(rows) - self._pace)
        self._seen(rows, seconds)
        start = 0
        for job in jobs:
            part = slice(start, start := start + len(job.batch))
            if job.answer.done():  # its deadline passed meanwhile
                continue
            if isinstance(scored[0], BaseException):
                job.answer.set_exception(scored[0])
            else:
                job.answer.set_result({n: x[part] for n, x in scored[0].items()})

    def _scored(self, jobs: list[_Job]) -> Scores:
        return self.scorer.score(concatenated([job.batch for job in jobs]))


def _too_late(rows: int) -> OverloadedError:
    return OverloadedError(
        "the request was not scored in time",
        where="the queue",
        found=f"{rows:,} rows that waited until their deadline" if rows else "a search",
        expected="an answer before the deadline",
        fix="ask again later, with fewer rows, or with a longer deadline",
    )
