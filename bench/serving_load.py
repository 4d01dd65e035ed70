"""Load: many connections from a process of its own, with every answer checked as it comes.

In a closed loop each connection asks again as soon as it is answered. In an open loop requests come
at random times of a given rate, whatever the server does, and a latency counts from the time that
was planned: a server that stalls is charged for everybody who would have come meanwhile.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import resource
import time
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

_ASK_SECONDS = 20.0  # after which a request counts as broken
_KEPT_SECONDS = 3.0  # that a connection may idle; the server hangs up after 5
_SPIN_SECONDS = 0.0015  # the event loop sleeps in whole milliseconds
BUSY = (429, 503)


@dataclass(frozen=True, slots=True)
class Request:
    """The body of a request, and the body of the answer that is right; b"" is not compared."""

    path: str
    body: bytes
    answer: bytes
    rows: int
    media_type: str = "application/json"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is asked.

    Args:
        port: of 127.0.0.1.
        requests: asked in turn, each with an id of its own.
        seconds: for so long.
        connections: that ask; in an open loop at most so many at a time.
        rate: requests per second of an open loop; 0 is a closed loop.
        seed: of the times of an open loop.
    """

    port: int
    requests: list[Request]
    seconds: float
    connections: int = 8
    rate: float = 0.0
    seed: int = 1


@dataclass
class Outcome:
    """What came back; all times in seconds since the beginning.

    Args:
        planned: [N] when each request was to be sent.
        sent: [N] when it was.
        done: [N] when its answer was complete.
        status: [N] of the answer, 0 where the connection broke.
        wrong: answers that belong to another request or have other bits, and refusals that do not
            say when to ask again.
        cpu: seconds that this process took.
        seconds: from the beginning to the last answer.
    """

    planned: np.ndarray
    sent: np.ndarray
    done: np.ndarray
    status: np.ndarray
    wrong: list[str]
    cpu: float
    seconds: float

    @property
    def served(self) -> np.ndarray:
        """[N] True where the answer has status 200."""
        return self.status == 200

    def per_second(self) -> float:
        """Returns served requests per second."""
        return float(self.served.sum()) / self.seconds

    def latency_ms(self, percentile: float) -> float:
        """Returns a percentile of served requests, from the planned time, in milliseconds."""
        waited = (self.done - self.planned)[self.served]
        return float(np.percentile(waited, percentile)) * 1e3 if len(waited) else float("nan")


class Load:
    """A process that asks."""

    def __init__(self, pool: ProcessPoolExecutor) -> None:
        self._pool = pool

    def start(self, plan: Plan) -> Future[Outcome]:
        """Starts asking."""
        return self._pool.submit(_load, plan)

    def run(self, plan: Plan) -> Outcome:
        """Asks, and returns what came back."""
        return self.start(plan).result(timeout=plan.seconds + 3 * _ASK_SECONDS)


@contextmanager
def loading() -> Iterator[Load]:
    """Starts the process, and ends it after the block."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        pool.submit(int).result(timeout=120)
        yield Load(pool)


def wire(request: Request, identity: str) -> bytes:
    """Returns the bytes of a request."""
    head = (
        f"POST {request.path} HTTP/1.1\r\nHost: x\r\nContent-Type: {request.media_type}\r\n"
        f"X-Request-Id: {identity}\r\nContent-Length: {len(request.body)}\r\n\r\n"
    )
    return head.encode() + request.body


class _Connection(asyncio.Protocol):
    """One connection, with one request at a time."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[tuple[int, bytes, bytes]] | None = None
        self._found = bytearray()
        self._head_end, self._whole = -1, 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def ask(self, data: bytes) -> asyncio.Future[tuple[int, bytes, bytes]]:
        """Sends a request; the future is its status, head and body."""
        assert self.transport
        self._answer = asyncio.get_running_loop().create_future()
        self.transport.write(data)
        return self._answer

    def data_received(self, data: bytes) -> None:
        self._found += data
        if self._head_end < 0:
            self._head_end = self._found.find(b"\r\n\r\n")
            if self._head_end < 0:
                return
            head = bytes(self._found[: self._head_end]).lower()
            length = head.partition(b"content-length:")[2].partition(b"\r\n")[0]
            self._whole = self._head_end + 4 + int(length)
        if len(self._found) < self._whole:
            return
        head = bytes(self._found[: self._head_end]) + b"\r\n"
        body = bytes(self._found[self._head_end + 4 : self._whole])
        extra = len(self._found) > self._whole
        self._found, self._head_end = bytearray(), -1
        if self._answer and not self._answer.done():
            self._answer.set_result((0 if extra else int(head[9:12]), head, body))

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answer and not self._answer.done():
            self._answer.set_exception(exc or ConnectionError("the server hung up"))

    def close(self) -> None:
        if self.transport:
            self.transport.abort()


@dataclass
class _Asking:
    """One run of a plan."""

    plan: Plan
    began: float
    idle: list[tuple[float, _Connection]] = field(
        default_factory=list
    )  # since when, the newest last
    rows: list[tuple[float, float, float, int]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    number: int = 0

    async def one(self, planned: float) -> None:
        """Asks once; `planned` is by the clock of the loop."""
        loop = asyncio.get_running_loop()
        number, self.number = self.number, self.number + 1
        request = self.plan.requests[number % len(self.plan.requests)]
        identity = f"{self.plan.seed}-{number}"
        connection, sent, status = None, loop.time(), 0
        try:
            async with asyncio.timeout(_ASK_SECONDS):
                connection = self._kept() or await self._connected()
                sent = loop.time()
                status, head, body = await connection.ask(wire(request, identity))
            self._check(request, identity, status, head, body)
        except (OSError, TimeoutError):
            status = 0
        done = loop.time()
        if connection and status:
            self.idle.append((done, connection))
        elif connection:
            connection.close()
        self.rows.append((planned - self.began, sent - self.began, done - self.began, status))

    def _kept(self) -> _Connection | None:
        if not self.idle:
            return None
        since, connection = self.idle.pop()
        if asyncio.get_running_loop().time() - since < _KEPT_SECONDS:
            return connection
        for _, old in [*self.idle, (since, connection)]:  # those below are older still
            old.close()
        self.idle.clear()
        return None

    async def _connected(self) -> _Connection:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(_Connection, "127.0.0.1", self.plan.port)
        return connection

    def _check(
        self, request: Request, identity: str, status: int, head: bytes, body: bytes
    ) -> None:
        head = head.lower()
        if request.answer and b"x-request-id: " + identity.encode() + b"\r\n" not in head:
            self.wrong.append(f"{identity}: another id")
        if status == 200 and request.answer and body != request.answer:
            self.wrong.append(f"{identity}: another answer")
        if status in BUSY and b"\r\nretry-after: " not in head:
            self.wrong.append(f"{identity}: no time to ask again")
        if status not in (200, *BUSY):
            self.wrong.append(f"{identity}: status {status}: {body[:200]!r}")


def _load(plan: Plan) -> Outcome:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    cpu = time.process_time()
    try:
        asking, seconds = asyncio.run(_asked(plan))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    rows = np.array(asking.rows, dtype=np.float64).reshape(-1, 4)
    planned, sent, done, status = rows.T
    spent = time.process_time() - cpu
    return Outcome(planned, sent, done, status.astype(np.int64), asking.wrong, spent, seconds)


async def _asked(plan: Plan) -> tuple[_Asking, float]:
    loop = asyncio.get_running_loop()
    asking = _Asking(plan, loop.time())
    if plan.rate:
        await _open(asking)
    else:
        until = loop.time() + plan.seconds

        async def again() -> None:
            while loop.time() < until:
                await asking.one(loop.time())

        await asyncio.gather(*(again() for _ in range(plan.connections)))
    seconds = loop.time() - asking.began
    for _, connection in asking.idle:
        connection.close()
    return asking, seconds


async def _open(asking: _Asking) -> None:
    plan, loop = asking.plan, asyncio.get_running_loop()
    gaps = np.random.default_rng(plan.seed).exponential(
        1 / plan.rate, int(plan.rate * plan.seconds * 2) + 100
    )
    room, running = asyncio.Semaphore(plan.connections), set[asyncio.Task[None]]()

    async def one(planned: float) -> None:
        async with room:
            await asking.one(planned)

    for planned in asking.began + np.cumsum(gaps):
        if planned > asking.began + plan.seconds:
            break
        while (left := planned - loop.time()) > 0:
            await asyncio.sleep(max(0.0, left - _SPIN_SECONDS))
        task = loop.create_task(one(float(planned)))
        running.add(task)
        task.add_done_callback(running.discard)
        await asyncio.sleep(0)  # answers are read even when the plan is late
    await asyncio.gather(*running)
