"""OpenAPI: the endpoints as one document, with the types and examples of the artefact served."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from fullrank import __version__
from fullrank.data.spec import Category, Column, History, Number, Tags, Target, Vector
from fullrank.serve import arrow_body, problem
from fullrank.serve.engine import Engine

Plain = dict[str, Any]
_JSON = "application/json"
_SCALAR: Plain = {"type": ["string", "number", "boolean", "null"]}
_WHOLE: Plain = {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1}
_STATUS = {
    "400": "the body is broken",
    "401": "no valid token",
    "403": "not allowed here",
    "404": "there is no such thing",
    "408": "the body came too slowly",
    "409": "the new artefact is not sound, or another reload is under way",
    "413": "too large",
    "415": "not a type that is read here",
    "422": "a value is wrong",
    "429": "too busy; Retry-After says when to ask again",
}
_BODY = ("400", "408", "413", "415", "422", "429")


def openapi(engine: Engine, secured: bool) -> Plain:
    """Returns an OpenAPI 3.1 document.

    Args:
        engine: whose spec gives the types.
        secured: requests need a token.
    """
    document: Plain = {
        "openapi": "3.1.0",
        "info": {
            "title": f"fullrank: {engine.artifact.model}",
            "version": __version__,
            "description": f"Scores of artefact {engine.fingerprint}.",
        },
        "paths": _paths(engine),
        "components": {"schemas": _schemas(engine)},
    }
    if secured:
        document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        for path, methods in document["paths"].items():
            if path.startswith("/v1/"):
                for operation in methods.values():
                    operation["security"] = [{"token": []}]
                    operation["responses"]["401"] = _problem("401")
    return document


def _paths(engine: Engine) -> Plain:
    deadline = _query("deadline_ms", {"type": "integer", "minimum": 1, "maximum": 60_000},
                      "milliseconds until the answer is due")  # fmt: skip
    label = _query("label", {"enum": list(engine.labels)}, "what to rank by; the first by default")
    rows = {"type": "integer", "minimum": 1, "maximum": engine.wire.max_rows}
    rank = [deadline, label, _query("top", rows, "how many to return; all by default")]
    micros = {"type": "integer", "minimum": 0, "maximum": 10**18}
    auction = [
        deadline,
        label,
        _query("pricing", {"enum": ["second", "first"]}, "which price a winner pays"),
        _query("slots", rows, "how many bids win; 1 by default"),
        _query("reserve_micros", micros, "least expected value of a thousand impressions"),
        _query("retrieve", rows, "items of the index that take part, instead of candidates"),
    ]
    examples = engine.schema_example()
    retrieve = _post("retrieve", "Retrieve", "Find the items that a user likes best",
                     [deadline, label, _query("k", rows, "how many; 10 by default")],
                     examples["retrieve"])  # fmt: skip
    bids = [1_000_000 + 250_000 * i for i in range(len(examples["rank"]["candidates"]))]
    auctioned = _post("auction", "Auction", "Give slots to bids", auction,
                      examples["rank"] | {"bids_micros": bids})  # fmt: skip
    for operation in (retrieve, auctioned):  # where there is no index
        operation["responses"]["404"] = _problem("404")
    return {
        "/v1/score": {"post": _post("score", "Score", "Score rows", [deadline],
                                    examples["score"], arrow=True)},
        "/v1/rank": {"post": _post("rank", "Rank", "Rank the candidates of one user", rank,
                                   examples["rank"], arrow=True)},
        "/v1/auction": {"post": auctioned},
        "/v1/retrieve": {"post": retrieve},
        "/v1/explain": {"post": _post("explain", "Explain", "What carried the score of a row",
                                      [deadline, label], examples["explain"])},
        **_fixed(),
    }  # fmt: skip


def _fixed() -> Plain:
    """Returns the paths that are the same for every artefact."""
    return {
        "/v1/reload": {"post": {
            "operationId": "reload",
            "summary": "Load the artefact folder again and swap it in",
            "responses": {"200": _answer({"type": "object"}, "swapped")}
            | {s: _problem(s) for s in ("403", "408", "409", "413", "422")},
        }},
        "/v1/model": {"get": _get("model", "What is served, with an example request")},
        "/healthz": {"get": _get("healthz", "The process answers")},
        "/readyz": {"get": _get("readyz", "An artefact is loaded and warm")},
        "/openapi.json": {"get": _get("openapi", "This document")},
        "/metrics": {"get": {
            "operationId": "metrics",
            "summary": "Numbers of all workers, for Prometheus",
            "responses": {"200": {"description": "text",
                                  "content": {"text/plain": {"schema": {"type": "string"}}}}},
        }},
        "/": {"get": {
            "operationId": "page",
            "summary": "A page on which a person edits an example and sees what is answered",
            "responses": {"200": {"description": "a page",
                                  "content": {"text/html": {"schema": {"type": "string"}}}}},
        }},
    }  # fmt: skip


def _post(
    path: str, name: str, summary: str, query: list[Plain], example: Plain, *, arrow: bool = False
) -> Plain:
    body: Plain = {_JSON: {"schema": _ref(f"{name}Request"), "example": example}}
    answer: Plain = {_JSON: {"schema": _ref(f"{name}Response")}}
    if arrow:
        binary = {"schema": {"type": "string", "format": "binary"}}
        body[arrow_body.MEDIA_TYPE] = answer[arrow_body.MEDIA_TYPE] = binary
    return {
        "operationId": path,
        "summary": summary,
        "parameters": query,
        "requestBody": {"required": True, "content": body},
        "responses": {"200": {"description": "done", "content": answer}}
        | {s: _problem(s) for s in _BODY},
    }


def _get(name: str, summary: str) -> Plain:
    return {
        "operationId": name,
        "summary": summary,
        "responses": {"200": _answer({"type": "object"}, "done")},
    }


def _answer(schema: Plain, text: str) -> Plain:
    return {"description": text, "content": {_JSON: {"schema": schema}}}


def _problem(status: str) -> Plain:
    content = {problem.MEDIA_TYPE: {"schema": _ref("Problem")}}
    return {"description": _STATUS[status], "content": content}


def _query(name: str, schema: Plain, text: str) -> Plain:
    return {"name": name, "in": "query", "required": False, "schema": schema, "description": text}


def _ref(name: str) -> Plain:
    return {"$ref": f"#/components/schemas/{name}"}


def _schemas(engine: Engine) -> Plain:
    return _requests(engine) | _answers(engine) | {
        "Problem": _open(
            {n: {"type": "string"} for n in ("type", "title", "detail", "where", "found")}
            | {n: {"type": "string"} for n in ("expected", "fix")}
            | {"status": {"type": "integer"}}
        ) | {"required": ["type", "title", "status"]},
    }  # fmt: skip


def _requests(engine: Engine) -> Plain:
    sides = engine.wire.sides
    many = {"minItems": 1, "maxItems": engine.wire.max_rows}
    row = (*sides.user, *sides.item, *sides.context)
    ranking = {"user": _ref("User"), "candidates": _list(_ref("Candidate"), **many)}
    micros = {"type": "integer", "minimum": 0, "maximum": 10**15}
    required = ["user", "candidates"] if _required(engine, sides.user) else ["candidates"]
    return {
        "Row": _object(engine, row, ()),
        "User": _object(engine, sides.user, sides.context),
        "Candidate": _object(engine, sides.item, sides.context),
        "ScoreRequest": _closed({"rows": _list(_ref("Row"), **many)}, ["rows"]),
        "RankRequest": _closed(ranking, required),
        "AuctionRequest": {"anyOf": [
            _closed(ranking | {"bids_micros": _list(micros, **many)}, [*required, "bids_micros"]),
            _ref("RetrieveRequest"),
        ]},
        "RetrieveRequest": _closed({"user": _ref("User")}, required[:-1]),
        "ExplainRequest": _closed({"row": _ref("Row")}, ["row"]),
    }  # fmt: skip


def _answers(engine: Engine) -> Plain:
    probability = {"type": "number", "minimum": 0, "maximum": 1}
    scores = {"type": "object", "properties": {n: _list(probability) for n in engine.labels}}
    model = {"model": {"type": "string"}, "label": {"enum": list(engine.labels)}}
    award = {
        n: {"type": "integer"}
        for n in ("candidate", "bid_micros", "price_micros", "value_micros", "charge_micros")
    } | {"probability": {"type": "number"}}
    token = {
        "column": {"type": "string"},
        "event": {"type": ["integer", "null"]},
        "value": {"type": "string", "maxLength": problem.MOST_INPUT},
        "change": {"type": "number"},
        "probability_without": probability,
    }
    return {
        "ScoreResponse": _open({"model": model["model"], "scores": scores}),
        "RankResponse": _open(model | {"order": _list({"type": "integer"}), "scores": scores}),
        "RetrieveResponse": _open(model | {"items": _list(_SCALAR), "scores": scores}),
        "AuctionResponse": _open(model | {"awards": _list(_open(award))}),
        "ExplainResponse": _open(model | {
            "logit": {"type": "number"},
            "probability": probability,
            "tokens": _list(_open(token)),
            "events_not_tried": {"type": "integer", "minimum": 0},
        }),
    }  # fmt: skip


def _required(engine: Engine, columns: Sequence[Column]) -> list[str]:
    needed = engine.featurizer.spec.raw_columns(labels=False)
    return [n for c in columns for n, _ in _types(c) if not needed[n]]


def _object(engine: Engine, own: Sequence[Column], free: Sequence[Column]) -> Plain:
    """Returns the type of a row; `own` columns are its own, `free` ones may stand in it."""
    spec, properties = engine.featurizer.spec, Plain()
    for c in (*own, *free):
        properties.update(_types(c))
    if spec.time and not (own == engine.wire.sides.item and free):
        properties.setdefault(spec.time, {**_WHOLE, "type": ["integer", "null"]})
    return _closed(properties, _required(engine, own))


def _types(column: Column) -> list[tuple[str, Plain]]:
    """Returns the raw columns that a column of the spec reads, as JSON schemas."""
    match column:
        case Category():
            return [(column.name, _SCALAR)]
        case Number():
            return [(column.name, {"type": ["number", "null"]})]
        case Tags():
            text = {"type": ["array", "string", "null"], "items": _SCALAR}
            return [(column.name, text)]
        case Vector():
            width = math.prod(column.shape)
            exact = {"minItems": width, "maxItems": width, "items": {"type": "number"}}
            return [(column.name, {"type": ["array", "null"], **exact})]
        case History():
            whole = {**_WHOLE, "type": ["integer", "null"]}
            return [
                (e.column, {"type": ["array", "null"], "items": _SCALAR if e.table else whole})
                for e in column.events
            ]
        case Target():
            return []


def _list(items: Plain, **bounds: int) -> Plain:
    return {"type": "array", "items": items, **bounds}


def _open(properties: Plain) -> Plain:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _closed(properties: Plain, required: list[str]) -> Plain:
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }
