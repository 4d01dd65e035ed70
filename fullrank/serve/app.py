"""App: the endpoints, over an engine that can be swapped while requests run.

    POST /v1/score   rows                     POST /v1/reload   swap the artefact
    POST /v1/rank    one user, candidates     GET  /v1/model    what is served, with examples
    POST /v1/auction bids on a ranking        GET  /healthz /readyz /metrics /openapi.json
    POST /v1/retrieve  items for a user      GET  /           a page that asks the others
    POST /v1/explain what carried a score

A request keeps the engine that it was read with until it is answered, so that a swap drops nothing.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from fullrank.batch import Batch
from fullrank.errors import FullrankError, OverloadedError, RequestError
from fullrank.serve import arrow_body, media, metrics, problem
from fullrank.serve.ask import Query, read_body, require_token
from fullrank.serve.auction import AuctionRules, run_auction
from fullrank.serve.batching import Scores
from fullrank.serve.direct import Direct, Handler
from fullrank.serve.explain import leave_out, told
from fullrank.serve.openapi import openapi
from fullrank.serve.page import page_endpoints
from fullrank.serve.pipeline import Pipeline, Retrieval, Retrieved
from fullrank.serve.service import Service, Serving
from fullrank.serve.shadow import raw_rows
from fullrank.serve.watch import Watched
from fullrank.serve.wire import Given

_ITEMS = 10  # that a retrieval returns unless it is told


class Endpoints:
    """The endpoints of one service.

    Args:
        service: engine, limits and numbers of this process.
    """

    def __init__(self, service: Service) -> None:
        self.service = service

    async def score(self, request: Request) -> Response:
        """POST /v1/score: probabilities of rows."""
        query = Query(request, ("deadline_ms",))
        with self.service.lease() as serving:
            return await self._score(request, query, serving)

    async def _score(self, request: Request, query: Query, serving: Serving) -> Response:
        body = await self._body(request, query, serving)
        if media.sends_arrow(request):
            rows: Any = arrow_body.read_streams(body, 1, serving.engine.wire.max_rows)[0]
        else:
            rows = serving.engine.wire.score_request(body)
        batch = serving.engine.encode_rows(rows)
        scores = await self._scored(serving, batch, query, "score", rows)
        model = serving.engine.fingerprint
        if media.wants_arrow(request):
            return media.as_arrow(dict(scores), model)
        return media.as_json({"model": model, "scores": {n: x.tolist() for n, x in scores.items()}})

    async def rank(self, request: Request) -> Response:
        """POST /v1/rank: the candidates of one user, best first."""
        query = Query(request, ("deadline_ms", "label", "top"))
        with self.service.lease() as serving:
            return await self._rank(request, query, serving)

    async def _rank(self, request: Request, query: Query, serving: Serving) -> Response:
        body = await self._body(request, query, serving)
        engine = serving.engine
        label = query.choice("label", engine.labels)
        top = query.whole("top", 1, engine.wire.max_rows, engine.wire.max_rows)
        if media.sends_arrow(request):
            user, candidates = arrow_body.read_streams(body, 2, engine.wire.max_rows)
            batch = engine.encode_rank(user, candidates)
            scores = await self._scored(serving, batch, query, "rank", user, candidates)
        else:
            given = engine.wire.rank_request(body)
            scores = await self._ranked(serving, *given, query, "rank")
        order = np.argsort(-scores[label], kind="stable")[:top]  # ties: by order of arrival
        best = {n: x[order] for n, x in scores.items()}
        if media.wants_arrow(request):
            return media.as_arrow({"candidate": order.astype(np.int32), **best}, engine.fingerprint)
        plain = {n: x.tolist() for n, x in best.items()}
        return media.as_json(
            {
                "model": engine.fingerprint,
                "label": label,
                "order": order.tolist(),
                "scores": plain,
            }
        )

    async def auction(self, request: Request) -> Response:
        """POST /v1/auction: slots and prices for bids on the candidates of one user."""
        names = ("deadline_ms", "label", "pricing", "slots", "reserve_micros", "retrieve")
        query = Query(request, names)
        with self.service.lease() as serving:
            return await self._auction(request, query, serving)

    async def _auction(self, request: Request, query: Query, serving: Serving) -> Response:
        body = await self._body(request, query, serving)
        engine = serving.engine
        label = query.choice("label", engine.labels)
        rules = AuctionRules(
            pricing=query.choice("pricing", ("second", "first")),  # type: ignore[arg-type]
            slots=query.whole("slots", 1, engine.wire.max_rows, 1),
            reserve_micros=query.whole("reserve_micros", 0, 10**18, 0),
        )
        if query.says("retrieve"):
            return await self._sold(serving, body, query, label, rules)
        user, candidates, bids = engine.wire.auction_request(body)
        scores = await self._ranked(serving, user, candidates, query, "auction")
        awards = run_auction(bids, scores[label].tolist(), rules)
        return media.as_json(
            {
                "model": engine.fingerprint,
                "label": label,
                "awards": [
                    {n: getattr(a, n) for n in a.__slots__} | {"probability": float(p)}
                    for a in awards
                    for p in [scores[label][a.candidate]]
                ],
            }
        )

    async def _sold(
        self, serving: Serving, body: bytes, query: Query, label: str, rules: AuctionRules
    ) -> Response:
        """Sells the slots to what the index has for a user, at the bids that it keeps."""
        retrieval = _index(serving)
        user = serving.engine.wire.user_request(body)
        k = query.whole("retrieve", 1, serving.engine.wire.max_rows, 1)
        plain = {name: values[0] for name, values in user.columns.items()}
        pipeline = Pipeline(retrieval, None, label)
        found = await self._found(serving, user, k, label, query, "auction")
        placed = pipeline.sell(plain, found, rules)
        awards = [
            {n: getattr(p.award, n) for n in p.award.__slots__}
            | {"item": p.item, "probability": p.probability}
            for p in placed
        ]
        return media.as_json(
            {"model": serving.engine.fingerprint, "label": label, "awards": awards}
        )

    async def retrieve(self, request: Request) -> Response:
        """POST /v1/retrieve: the items of the index that a user likes best."""
        query = Query(request, ("deadline_ms", "label", "k"))
        with self.service.lease() as serving:
            return await self._retrieve(request, query, serving)

    async def _retrieve(self, request: Request, query: Query, serving: Serving) -> Response:
        engine, index = serving.engine, _index(serving).index
        body = await self._body(request, query, serving)
        label = query.choice("label", engine.labels)
        k = query.whole("k", 1, engine.wire.max_rows, _ITEMS)
        user = engine.wire.user_request(body)
        found = await self._found(serving, user, k, label, query, "retrieve")
        items = index.items[index.item].gather(found.places).to_list()
        scores = {n: x.tolist() for n, x in found.probabilities.items()}
        return media.as_json(
            {"model": engine.fingerprint, "label": label, "items": items, "scores": scores}
        )

    async def explain(self, request: Request) -> Response:
        """POST /v1/explain: how much each token of a row carried its score."""
        query = Query(request, ("deadline_ms", "label"))
        with self.service.lease() as serving:
            return await self._explain(request, query, serving)

    async def _explain(self, request: Request, query: Query, serving: Serving) -> Response:
        body = await self._body(request, query, serving)
        engine, batcher = serving.engine, serving.batcher
        label = query.choice("label", engine.labels)
        given = engine.wire.explain_request(body)
        parts = leave_out(engine.encode_rows(given), engine.blank, engine.featurizer.spec, given)
        deadline = query.deadline(self.service.limits.deadline_ms)
        batcher.require_room(len(parts.batch), deadline)
        logits = await batcher.call(lambda: engine.logits(parts.batch), deadline)
        self._told(serving, None, logits, "explain", ())
        chances = engine.probabilities(logits)
        return media.as_json(
            {"model": engine.fingerprint, "label": label}
            | told(parts, logits[label], chances[label])
        )

    async def reload(self, request: Request) -> Response:
        """POST /v1/reload: loads the artefact folder again and swaps it in, if it is sound."""
        Query(request, ())
        if not self.service.tokens:
            raise RequestError(
                "reloading over HTTP needs a token",
                status=403,
                where="/v1/reload",
                found="a server without --token-file",
                expected="a server with one",
                fix="send the process SIGHUP, or start it with --token-file",
            )
        await read_body(request, self.service)
        return media.as_json(await self.service.reload())

    async def model(self, request: Request) -> Response:
        """GET /v1/model: what is served."""
        return media.as_json(self.service.serving.engine.describe())

    async def document(self, request: Request) -> Response:
        """GET /openapi.json: these endpoints, with types and examples of this artefact."""
        return media.as_json(openapi(self.service.serving.engine, bool(self.service.tokens)))

    async def healthy(self, request: Request) -> Response:
        """GET /healthz: the process answers."""
        return media.as_json({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        """GET /readyz: an artefact is loaded and warm."""
        return media.as_json({"status": "ready", "model": self.service.serving.engine.fingerprint})

    async def metrics(self, request: Request) -> Response:
        """GET /metrics: numbers of all workers."""
        return Response(metrics.render(self.service.snapshots()), media_type=metrics.MEDIA_TYPE)

    async def _body(self, request: Request, query: Query, serving: Serving) -> bytes:
        """Reads a body, unless it is clear beforehand that there is no time for it."""
        media.require_readable(request)
        serving.batcher.require_any_room(query.deadline(self.service.limits.deadline_ms))
        return await read_body(request, self.service)

    async def _scored(
        self, serving: Serving, batch: Batch, query: Query, path: str, *raw: Any
    ) -> Scores:
        """Scores a batch; `raw` is what it was encoded from."""
        deadline = query.deadline(self.service.limits.deadline_ms)
        scores = await serving.batcher.submit(batch, deadline)
        return self._told(serving, batch, scores, path, raw)

    async def _ranked(
        self, serving: Serving, user: Given, candidates: Given, query: Query, path: str
    ) -> Scores:
        """Scores candidates, with the user's side computed once where the model has sides."""
        sides, encode = serving.sides, serving.engine.encode_rank
        if sides is None or not sides.pays(candidates.rows):
            batch = encode(user, candidates)
            return await self._scored(serving, batch, query, path, user, candidates)
        deadline = query.deadline(self.service.limits.deadline_ms)
        seconds = serving.engine.seconds(candidates.rows)  # both sides of every row: it is less
        scores = await serving.batcher.call(lambda: sides.rank(user, candidates), deadline, seconds)
        whole = encode(user, candidates) if serving.shadow else None  # a log has every value
        return self._told(serving, whole, scores, path, (user, candidates))

    async def _found(
        self, serving: Serving, user: Given, k: int, label: str, query: Query, path: str
    ) -> Retrieved:
        """Retrieves items, which are served rows like any other."""
        retrieval = _index(serving)
        deadline = query.deadline(self.service.limits.deadline_ms)
        found = await serving.batcher.call(lambda: retrieval.retrieve(user, k, label), deadline)
        if serving.shadow:
            items = retrieval.index.given(found.places)
            batch = serving.engine.encode_rank(user, items)
            self._told(serving, batch, found.probabilities, path, (user, items))
        else:
            self._told(serving, None, found.probabilities, path, ())
        return found

    def _told(
        self, serving: Serving, batch: Batch | None, scores: Scores, path: str, raw: tuple[Any, ...]
    ) -> Scores:
        """Counts and logs what was scored, and refuses what is no number."""
        for label, x in scores.items():
            if not np.isfinite(x).all():
                raise RequestError(
                    "the model has no number for a row",
                    where=f"row {int(np.argmin(np.isfinite(x)))}, label '{label}'",
                    found="NaN",
                    expected="numbers of the size that training saw",
                    fix="correct the numbers of this row",
                )
        rows = len(next(iter(scores.values())))
        self.service.metrics.add("fullrank_rows_total", rows, path=path)
        if serving.shadow and batch is not None:
            serving.shadow.offer(raw_rows(*raw), batch, scores)
        return scores


def _index(serving: Serving) -> Retrieval:
    if serving.retrieval is not None:
        return serving.retrieval
    raise RequestError(
        "this artefact has no item index",
        status=404,
        where="the artefact",
        found="no index",
        expected="an artefact whose model has two sides, with an index",
        fix="make one with `fullrank index ARTIFACT ITEMS`, then reload",
    )


def create_app(service: Service) -> Any:
    """Returns the ASGI app of a service that is loaded already."""
    ends = Endpoints(service)
    posts = {
        "/v1/score": ends.score,
        "/v1/rank": ends.rank,
        "/v1/retrieve": ends.retrieve,
        "/v1/auction": ends.auction,
        "/v1/explain": ends.explain,
        "/v1/reload": ends.reload,
    }
    gets = {
        "/v1/model": ends.model,
        "/openapi.json": ends.document,
        "/healthz": ends.healthy,
        "/readyz": ends.ready,
        "/metrics": ends.metrics,
        **page_endpoints(),
    }
    guarded = {p: _guarded(service, f) for p, f in posts.items()}
    routes = [Route(p, f, methods=["POST"]) for p, f in guarded.items()]
    routes += [Route(p, _guarded(service, f), methods=["GET"]) for p, f in gets.items()]

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with service.running():
            yield

    app = Starlette(
        routes=routes,
        lifespan=lifespan,
        middleware=[Middleware(Direct, guarded, _failed(service))],
        exception_handlers={
            FullrankError: _failed(service),
            HTTPException: _not_found,
            Exception: _broke,
        },
    )
    return Watched(app, service, (*posts, *gets))


def _guarded(service: Service, handler: Handler) -> Handler:
    async def guarded(request: Request) -> Response:
        if request.url.path.startswith("/v1/"):
            require_token(request, service.tokens)
        return await handler(request)

    return guarded


def _failed(service: Service) -> Any:
    async def failed(request: Request, error: Exception) -> Response:
        assert isinstance(error, FullrankError)
        headers = {}
        if isinstance(error, OverloadedError):
            headers["Retry-After"] = str(error.retry_seconds)
        status = problem.status_of(error)
        if status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return _problem(problem.problem(error, service.hidden), headers)

    return failed


async def _not_found(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    wrong_method = error.status_code == 405
    allowed = (error.headers or {}).get("Allow", "")
    members = problem.problem(
        RequestError(
            "this path has no such method" if wrong_method else "there is no such path",
            status=error.status_code,
            where=problem.shown(request.url.path),
            found=problem.shown(request.method, 20),
            expected=allowed or "a path of GET /openapi.json",
            fix="see GET /openapi.json",
        )
    )
    return _problem(members, dict(error.headers or {}))


async def _broke(request: Request, error: Exception) -> Response:
    """Says nothing about an error of ours; the log of the server has it all."""
    return _problem({"type": "about:blank", "title": "Internal Server Error", "status": 500}, {})


def _problem(members: dict[str, Any], headers: dict[str, str]) -> Response:
    return Response(
        problem.problem_body(members), members["status"], headers, media_type=problem.MEDIA_TYPE
    )
