"""Requests that nobody should send, thousands of them: no 5xx, no traceback, nothing told.

The environment variable FULLRANK_FUZZ_REQUESTS says how many; `make fuzz` asks for 24,000.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import hypothesis
import polars as pl
import pytest
import requests
import schemathesis
from hypothesis import given
from hypothesis import strategies as st
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from fullrank.serve import arrow_body
from fullrank.serve.block_sizes import Blocks
from fullrank.serve.engine import Engine
from fullrank.serve.retrieval import ItemIndex

from . import catalogue, storm
from .conftest import make_artifact, make_log
from .storm import REQUESTS, Server, hostile_arrow, hostile_json, in_process, requests_of
from .test_server import TOKEN

ARROW = {"Content-Type": arrow_body.MEDIA_TYPE}


@pytest.fixture(scope="module", autouse=True)
def counted() -> Iterator[None]:
    yield
    storm.tell()


@pytest.fixture(scope="module")
def quick() -> Iterator[None]:
    """Trying block sizes takes most of the time that a small engine takes to load."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "fullrank.serve.engine.try_blocks", lambda score, schema: Blocks({64: 1e-4}, True)
        )
        yield


def ranker(folder: Path) -> Path:
    make_artifact("dcnv2", make_log(300)).save(folder)
    return folder


def shop(folder: Path) -> Path:
    """Two towers with an index and bids."""
    place = catalogue.save_artifact(folder)
    engine = Engine.load(place)
    index = ItemIndex.build(engine.predictor, catalogue.catalogue(), bid="bid")
    index.save(place, engine.fingerprint)
    return place


@pytest.fixture(scope="module", params=[ranker, shop], ids=lambda f: f.__name__)
def server(request, quick, tmp_path_factory) -> Iterator[Server]:
    """A ranker that asks for no token, and two towers that do; as they were, after the storm."""
    folder = request.param(tmp_path_factory.mktemp("served") / "artifact")
    with in_process(folder, TOKEN if request.param is shop else "") as server:
        before = known_answers(server)
        yield server
        assert known_answers(server) == before


def known_answers(server: Server) -> list[bytes]:
    model = server.get("/v1/model")
    rows = json.dumps(model.json()["example"]["score"]).encode()
    scored = server.send(server.client.build_request("POST", "/v1/score", content=rows))
    assert scored.status_code == 200
    return [model.content, scored.content]


def examples(server: Server) -> dict[str, Any]:
    return {
        path: next(iter(methods["post"]["requestBody"]["content"].values()))["example"]
        for path, methods in server.documented.items()
        if "requestBody" in methods.get("post", {})
    }


def send(server: Server, path: str, body: bytes, **headers: str) -> httpx.Response:
    return server.send(server.client.build_request("POST", path, content=body, headers=headers))


PROBLEM = dict.fromkeys(storm.PARTS, "said") | {"status": 422}


@pytest.mark.parametrize(
    ("status", "kind", "change"),
    [
        (500, "application/problem+json", {"status": 500}),
        (422, "application/json", {}),
        (422, "application/problem+json", {"status": 400}),
        (422, "application/problem+json", {"fix": ""}),
        (422, "application/problem+json", {"found": "x" * 101}),
        (422, "application/problem+json", {"detail": "Traceback (most recent call last)"}),
        (422, "application/problem+json", {"where": "/srv/artifact/weights"}),
        (200, "application/json", {"where": "/srv/artifact/weights"}),
    ],
)
def test_an_answer_that_breaks_a_rule_is_noticed(status, kind, change):
    good = json.dumps(PROBLEM).encode()
    storm.require_sound(422, "application/problem+json", good, ["/srv/artifact"])
    bad = json.dumps(PROBLEM | change).encode()
    with pytest.raises(AssertionError):
        storm.require_sound(status, kind, bad, ["/srv/artifact"])


# ---- from its own OpenAPI


def described(server: Server) -> Any:
    """The document without its tokens, which have tests of their own."""
    document = server.get("/openapi.json").json()
    document["components"].pop("securitySchemes", None)
    for methods in document["paths"].values():
        for operation in methods.values():
            operation.pop("security", None)
    return schemathesis.openapi.from_dict(document)


def as_sent(server: Server, case: Any) -> httpx.Request:
    """What schemathesis would send."""
    said = case.as_transport_kwargs(base_url="http://t")
    names = ("method", "url", "headers", "params", "json", "data", "cookies", "files")
    plain = requests.Request(**{n: said[n] for n in names if n in said}).prepare()
    body = plain.body.encode("utf-8", "replace") if isinstance(plain.body, str) else plain.body
    own = dict(server.client.headers) if "authorization" in server.client.headers else {}
    token = {n: v for n, v in own.items() if n == "authorization"}
    headers = {**dict(plain.headers), **token}
    return httpx.Request(plain.method, plain.url, headers=headers, content=body)


@pytest.mark.parametrize("kind", schemathesis.GenerationMode)
def test_what_schemathesis_makes_of_the_document_is_answered_as_the_document_says(server, kind):
    for result in described(server).get_all_operations():
        operation = result.ok()
        says = "requestBody" in server.documented[operation.path][operation.method]
        if not says and kind is schemathesis.GenerationMode.NEGATIVE:
            continue  # nothing can be wrong about a request that says nothing

        @requests_of(0.012)
        @given(operation.as_strategy(generation_mode=kind))
        def check(case: Any) -> None:
            answer = server.send(as_sent(server, case))
            # That every sound request is accepted cannot be told by types: a context column may
            # stand on either side but not on both, a bid has a candidate, a number fits 32 bits.
            excluded = [positive_data_acceptance]
            if answer.status_code == 413:  # not among the refusals that schemathesis knows
                excluded.append(negative_data_rejection)
            case.validate_response(answer, excluded_checks=excluded)

        check()


# ---- bodies


@pytest.mark.parametrize(
    "path", ["/v1/score", "/v1/rank", "/v1/auction", "/v1/retrieve", "/v1/explain"]
)
def test_broken_and_odd_json_is_answered(server, path):
    [example] = [e for p, e in examples(server).items() if p == path]

    @requests_of(0.035)
    @given(hostile_json([example]))
    def check(body: bytes) -> None:
        send(server, path, body)
        if path == "/v1/retrieve":
            send(server, "/v1/auction?retrieve=9&slots=3", body)

    check()


@pytest.mark.parametrize("path", ["/v1/score", "/v1/rank"])
def test_broken_and_odd_arrow_is_answered(server, path):
    two_towers = "price" in examples(server)["/v1/rank"]["candidates"][0]
    log = catalogue.make_log(3, seed=1) if two_towers else make_log(3, seed=1)
    rows = log.drop("click", "buy")
    item = list(catalogue.ITEM_COLUMNS) if two_towers else ["ad"]
    frames = [rows] if path == "/v1/score" else [rows[:1].drop(item), rows.select(item)]

    @requests_of(0.06)
    @given(hostile_arrow([frames]))
    def check(body: bytes) -> None:
        send(server, path, body, **ARROW)

    check()
    streams = b"".join(storm.stream(f.to_arrow()) for f in frames)
    assert send(server, path, streams, **ARROW).status_code == 200  # the ones it starts from


def test_every_odd_value_in_every_place_is_answered(server):
    for path, example in examples(server).items():
        places = list(storm._places(example))
        for i in range(0, len(places), max(1, len(places) * 40 // REQUESTS)):
            for literal in storm.LITERALS[i % 7 :: 7] if REQUESTS < 20_000 else storm.LITERALS:
                body = json.loads(json.dumps(example))
                holder, key = list(storm._places(body))[i]
                holder[key] = "@@"
                send(server, path, json.dumps(body).replace('"@@"', literal).encode())


@pytest.mark.parametrize("rows", [0, 1, storm.MOST_ROWS, storm.MOST_ROWS + 1, 10_050])
def test_the_number_of_rows_is_held_to_the_limit(server, rows):
    wanted = 422 if rows == 0 else 200 if rows <= storm.MOST_ROWS else 413
    for path, (part, *others) in {
        "/v1/score": ("rows",),
        "/v1/rank": ("candidates",),
        "/v1/auction": ("candidates", "bids_micros"),
    }.items():
        body = dict(examples(server)[path])
        for name in (part, *others):
            body[name] = body[name][:1] * rows
        assert send(server, path, json.dumps(body).encode()).status_code == wanted
    frame = make_log(3, seed=1) if "picture" in body["user"] else catalogue.make_log(3, seed=1)
    frame = pl.concat([frame.drop("click", "buy")[:1]] * rows) if rows else frame[:0]
    answer = send(server, "/v1/score", storm.stream(frame.to_arrow()), **ARROW)
    assert answer.status_code == wanted


@pytest.mark.parametrize("bid", ["-1", "1.5", "1.0", str(10**18), str(2**63), "true", '"1"', "NaN"])
def test_odd_bids_are_refused(server, bid):
    body = json.dumps(examples(server)["/v1/auction"] | {"bids_micros": [0, 0, "@@"]})
    answer = send(server, "/v1/auction", body.replace('"@@"', bid).encode())
    assert answer.status_code in (400, 422)
    short = json.dumps(examples(server)["/v1/auction"] | {"bids_micros": [1, 2]})
    assert send(server, "/v1/auction", short.encode()).status_code == 422


LIES = {
    "gzip": {"Content-Encoding": "gzip"},
    "text": {"Content-Type": "text/plain"},
    "form": {"Content-Type": "multipart/form-data; boundary=x"},
    "odd": {"Content-Type": "\u00ff;;;="},
    "arrow": ARROW,
}


@pytest.mark.parametrize("lie", LIES)
def test_a_body_of_another_type_than_it_says_is_refused(server, lie):
    for path, example in examples(server).items():
        headers = {n: v.encode("latin-1") for n, v in LIES[lie].items()}
        answer = send(server, path, json.dumps(example).encode(), **headers)
        indexed = path != "/v1/retrieve" or "authorization" in server.client.headers
        assert answer.status_code in ((400, 415) if indexed else (404,))


TEXT = st.one_of(
    st.text(max_size=20), st.sampled_from(["1", "0", "-1", "1e3", "9" * 30, "", "%", "\u0661"])
)
QUERY = st.dictionaries(
    st.sampled_from(
        ["top", "label", "k", "slots", "retrieve", "deadline_ms", "reserve_micros", "x"]
    ),
    st.one_of(TEXT, st.lists(TEXT, max_size=2)),
    max_size=3,
)
HEADERS = st.dictionaries(
    st.sampled_from(
        [b"Accept", b"X-Request-Id", b"Content-Length", b"Content-Type", b"Cookie", b"Host"]
    ),
    st.one_of(st.binary(max_size=30), st.sampled_from([b"9" * 30, b"-1", b"a" * 10_000])),
    max_size=2,
)


def test_odd_paths_queries_and_headers_are_answered(server):
    known = list(examples(server).items())
    token = [(b"authorization", server.client.headers.get("authorization", "").encode())]

    @requests_of(0.08)
    @given(
        st.sampled_from(known), TEXT, QUERY, HEADERS, st.sampled_from(["POST", "GET", "PUT", "Ā"])
    )
    def check(one: tuple[str, Any], tail: str, query: Any, headers: Any, method: str) -> None:
        path, example = one
        url = httpx.URL(f"http://t{path}{quote(tail)}", params=query)
        said = [*headers.items(), *token]
        content = json.dumps(example).encode()
        request = httpx.Request("POST", url, headers=said, content=content)
        request.method = method
        answer = server.send(request)
        assert answer.headers.get("x-request-id", "a").isascii()

    check()


# ---- tokens


def asked_with(server: Server, value: bytes | None) -> int:
    headers = [] if value is None else [(b"Authorization", value)]
    return server.send(httpx.Request("GET", "http://t/v1/model", headers=headers)).status_code


def test_only_the_token_opens(server):
    if "authorization" not in server.client.headers:  # where none is asked for, any will do
        assert [asked_with(server, v) for v in (None, b"", b"Bearer \xff")] == [200] * 3
        return
    right = f"Bearer {TOKEN}".encode()
    assert asked_with(server, right) == 200
    assert asked_with(server, None) == 401
    odd = [
        b"",
        b"Bearer",
        b"Bearer ",
        TOKEN.encode(),
        b"Basic " + TOKEN.encode(),
        right[:-1],
        right + b"x",
        b"Bearer " + TOKEN.upper().encode(),
        b"Bearer " + b"x" * 100_000,
        b"Bearer \xff\xfe\x00",
        right + b", " + right,
        b"Bearer " + "ключ".encode(),
        b"Bearer" + TOKEN.encode(),
        right.replace(b"0", b"\xc2\xb20"),
    ]
    assert {asked_with(server, value) for value in odd} == {401}

    @requests_of(0.05)
    @given(st.one_of(storm.broken(right), st.binary(), st.binary().map(lambda b: b"Bearer " + b)))
    def check(value: bytes) -> None:
        same = value.partition(b" ")[2].strip() == TOKEN.encode()
        hypothesis.assume(not same)
        assert asked_with(server, value) == 401

    check()
