"""Service: the engine of one process, and how it is swapped while requests run."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from fullrank.errors import ArtifactError, FullrankError, RequestError
from fullrank.model import Retriever
from fullrank.serve.batching import Batcher, BatchingConfig, stop_if_failed
from fullrank.serve.engine import MAX_ROWS, Engine
from fullrank.serve.forms import Form
from fullrank.serve.generations import Generations
from fullrank.serve.metrics import Metrics, Snapshot
from fullrank.serve.pipeline import Retrieval
from fullrank.serve.retrieval import FILE
from fullrank.serve.shadow import ShadowConfig, ShadowLog
from fullrank.serve.two_sided import TwoSided

Loaded: TypeAlias = tuple[Engine, Retrieval | None]
log = logging.getLogger("fullrank.serve")

_FOLLOW_SECONDS, _REPORT_EVERY = 0.25, 4  # a look at the current generation; a report each 4th
_SWITCH_SECONDS = 30.0  # that a reload waits for the other workers


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one request, and all together, may ask for.

    Args:
        max_rows: of a request.
        max_body_bytes: of a request.
        buffered_bytes: of all bodies that are being read.
        body_seconds: until a body must have arrived.
        deadline_ms: until an answer is due, unless the request says otherwise.
    """

    max_rows: int = MAX_ROWS
    max_body_bytes: int = 16 << 20
    buffered_bytes: int = 256 << 20
    body_seconds: float = 10.0
    deadline_ms: float = 1000.0


@dataclass(frozen=True, kw_only=True)
class ServiceConfig:
    """What a process serves, and how.

    Args:
        artifact: folder; read again at every reload.
        limits: of requests.
        batching: how requests wait.
        form: what runs the model; see `serve.forms`.
        search: how items are found, where the artefact has an index of them.
        shadow: where some of the served rows are written; None for nowhere.
        runtime: folder that several workers share; None for a single one.
    """

    artifact: Path
    limits: Limits = field(default_factory=Limits)
    batching: BatchingConfig = field(default_factory=BatchingConfig)
    form: Form = "eager"
    search: Literal["exact", "hnsw"] = "exact"
    shadow: ShadowConfig | None = None
    runtime: Path | None = None


@dataclass(eq=False)
class Serving:
    """An engine, the index of its items if there is one, and the requests that wait for them.

    Args:
        engine: scores rows.
        retrieval: finds items; None without an index.
        sides: ranks candidates where the model knows a user without an item; else None.
        batcher: the requests that wait.
        shadow: where some of what was served is written; None for nowhere.
        leases: requests that are being answered.
    """

    engine: Engine
    retrieval: Retrieval | None
    sides: TwoSided | None
    batcher: Batcher
    shadow: ShadowLog | None
    leases: int = 0

    async def retire(self) -> None:
        """Ends when the last request that was read with this engine has been answered."""
        while self.leases:
            await asyncio.sleep(0.05)
        await self.batcher.close()
        if self.shadow:
            await asyncio.to_thread(self.shadow.close)


class Service:
    """State of one process: engine, limits and numbers.

    Args:
        config: what to serve.
        tokens: digests of the tokens that may ask; none means that all may.

    Raises:
        ArtifactError: the artefact is not sound.
    """

    serving: Serving

    def __init__(self, config: ServiceConfig, tokens: tuple[bytes, ...] = ()) -> None:
        self.config, self.tokens, self.limits = config, tokens, config.limits
        self.metrics, self.buffered = Metrics(), 0
        self.hidden = (str(config.artifact.resolve()), str(config.artifact))
        self._generations = Generations(config.runtime) if config.runtime else None
        self._generation = self._generations.current() if self._generations else ""
        self._loaded = self._load(self._folder())
        self._reloading = asyncio.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()

    @contextmanager
    def lease(self) -> Iterator[Serving]:
        """Gives the engine of the moment, for as long as one request needs it."""
        serving = self.serving
        serving.leases += 1
        try:
            yield serving
        finally:
            serving.leases -= 1

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Serves: batches are scored, SIGHUP reloads, other workers are followed."""
        loop = asyncio.get_running_loop()
        self.serving = self._serving(*self._loaded)
        gc.freeze()  # to go over all that was loaded would stop requests for a tenth of a second
        signals = [s for s in ("SIGHUP",) if hasattr(signal, s)]
        with suppress(ValueError, RuntimeError):  # only the main thread hears signals
            for name in signals:
                loop.add_signal_handler(getattr(signal, name), self._hangup)
        follow = loop.create_task(self._follow(), name="following") if self._generations else None
        if follow:
            follow.add_done_callback(stop_if_failed)
        log.info("serving %s (%s)", *_told(self._loaded[0]))
        try:
            yield
        finally:
            with suppress(ValueError, RuntimeError):
                for name in signals:
                    loop.remove_signal_handler(getattr(signal, name))
            if follow:
                follow.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await self.serving.retire()
            if self._generations:
                self._generations.forget()

    async def reload(self) -> dict[str, Any]:
        """Loads, checks and warms the artefact folder, and swaps it in for all workers.

        Raises:
            RequestError: another reload is under way.
            ArtifactError: the new artefact is not sound; the old one goes on being served.
        """
        if self._reloading.locked():
            raise RequestError(
                "another reload is under way",
                status=409,
                where="/v1/reload",
                found="a reload that has not ended",
                expected="one at a time",
                fix="wait for it, then look at GET /v1/model",
            )
        async with self._reloading:
            before = self.serving.engine.fingerprint
            try:
                loaded, generation = await asyncio.to_thread(self._load_new)
            except FullrankError as error:
                self.metrics.add("fullrank_reloads_total", result="refused")
                log.warning("kept %s: %s", before, str(error).replace("\n", ";"))
                raise
            self._switch(loaded)
            self.metrics.add("fullrank_reloads_total", result="swapped")
            switched, workers = await self._others(generation)
        return {
            "before": before,
            "model": loaded[0].fingerprint,
            "workers": workers,
            "switched": switched,
        }

    def snapshots(self) -> dict[str, Snapshot]:
        """Returns worker -> numbers, those of this process as they are now."""
        self._measure()
        mine = str(os.getpid())
        found = {mine: self.metrics.snapshot()}
        if self._generations:
            reports = self._generations.reports()
            found |= {p: r["metrics"] for p, r in reports.items() if p != mine}
        return found

    def _measure(self) -> None:
        serving = self.serving
        self.metrics.put("fullrank_queue_rows", serving.batcher.waiting_rows)
        self.metrics.put("fullrank_buffered_bytes", self.buffered)
        if shadow := serving.shadow:
            self.metrics.put("fullrank_shadow_written_rows", shadow.written)
            self.metrics.put("fullrank_shadow_dropped_rows", shadow.dropped)
        info = {"model": serving.engine.artifact.model, "fingerprint": serving.engine.fingerprint}
        self.metrics.put("fullrank_model_info", 1, **info)

    def _folder(self) -> Path:
        if self._generations:
            return self._generations.path(self._generation)
        return self.config.artifact

    def _load(self, folder: Path) -> Loaded:
        with _reading(folder):
            engine = Engine.load(
                folder, self.config.batching.threads, self.config.form, self.limits.max_rows
            )
            if not (folder / FILE).exists():
                return engine, None
            retrieval = Retrieval.load(folder, engine, self.config.search)
        if found := retrieval.measured:
            log.info(
                "hnsw finds %.4f of the first %d items, in %.3f ms; looking at all takes %.3f ms",
                found.recall, found.at, 1e3 * found.seconds, 1e3 * found.exact_seconds,
            )  # fmt: skip
        return engine, retrieval

    def _load_new(self) -> tuple[Loaded, str]:
        source = self.config.artifact
        loaded = self._load(source)
        if not self._generations:
            return loaded, ""
        with _reading(source):
            name = self._generations.keep(source, loaded[0].fingerprint)
            self._generation = name  # before it is published, or this worker would follow itself
            self._generations.publish(name)
        return loaded, name

    def _serving(self, engine: Engine, retrieval: Retrieval | None) -> Serving:
        config, shadow = self.config, None
        batcher = Batcher(engine, config.batching, self._batch_seen)
        if config.shadow:
            threads = config.batching.threads
            shadow = ShadowLog(
                config.shadow, engine.artifact, engine.fingerprint, config.form, threads
            )
        sides = retrieval.sides if retrieval else None
        if sides is None and isinstance(engine.predictor.model, Retriever):
            sides = TwoSided(engine)
        return Serving(engine, retrieval, sides, batcher, shadow)

    def _batch_seen(self, rows: int, seconds: float) -> None:
        self.metrics.observe("fullrank_batch_rows", rows)
        self.metrics.observe("fullrank_batch_seconds", seconds)

    def _switch(self, loaded: Loaded) -> None:
        async def retire(old: Serving) -> None:
            await old.retire()
            del old
            gc.unfreeze()
            gc.collect()  # what the old engine leaves behind goes now
            gc.freeze()

        self._start(retire(self.serving))
        self.serving, self._loaded = self._serving(*loaded), loaded
        log.info("now serving %s (%s)", *_told(loaded[0]))

    def _start(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _hangup(self) -> None:
        async def reload() -> None:
            with suppress(FullrankError):  # the log says why
                await self.reload()

        self._start(reload())

    async def _others(self, generation: str) -> tuple[int, int]:
        """Waits for the other workers; returns how many serve this generation, of how many."""
        if not self._generations:
            return 1, 1
        self._report()
        until = asyncio.get_running_loop().time() + _SWITCH_SECONDS
        while True:
            reports = list(self._generations.reports().values())
            switched = sum(r["generation"] == generation for r in reports)
            if switched == len(reports) or asyncio.get_running_loop().time() > until:
                return switched, len(reports)
            await asyncio.sleep(0.1)

    def _report(self) -> None:
        assert self._generations
        self._measure()
        state = {"generation": self._generation, "metrics": self.metrics.snapshot()}
        self._generations.report(state)

    async def _follow(self) -> None:
        """Serves whatever generation the workers agreed on, and reports."""
        assert self._generations
        turn, refused = 0, ""
        while True:
            name = self._generations.current()
            if name not in (self._generation, refused):
                try:
                    loaded = await asyncio.to_thread(self._load, self._generations.path(name))
                    self._generation = name
                    self._switch(loaded)
                    turn = 0
                except FullrankError as error:
                    refused = name
                    log.warning("cannot follow: %s", str(error).replace("\n", ";"))
            if turn % _REPORT_EVERY == 0:
                self._report()
            turn += 1
            await asyncio.sleep(_FOLLOW_SECONDS)


def _told(engine: Engine) -> tuple[str, str]:
    return engine.artifact.model, engine.fingerprint


@contextmanager
def _reading(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as cause:
        raise ArtifactError(
            "an artefact cannot be read",
            where=str(folder),
            found=f"{type(cause).__name__}: {cause.strerror}",
            expected="a folder that stays as it is while it is loaded",
            fix="reload again when nothing writes to it",
        ) from cause
