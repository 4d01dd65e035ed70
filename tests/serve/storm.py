"""A storm of requests that nobody should send, and what must hold of every answer."""

from __future__ import annotations

import asyncio
import json
import os
import struct
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import hypothesis
import polars as pl
import pyarrow as pa
from hypothesis import HealthCheck
from hypothesis import strategies as st

from fullrank.serve.app import create_app
from fullrank.serve.ask import digest
from fullrank.serve.service import Limits, Service, ServiceConfig

PARTS = ("type", "title", "detail", "where", "found", "expected", "fix")
REQUESTS = int(os.environ.get("FULLRANK_FUZZ_REQUESTS", "1200"))  # about as many are sent
MOST_ROWS = 50  # of a request; few, so that "too many" is cheap to send
COUNTS: Counter[tuple[str, int]] = Counter()  # (endpoint, status) -> answers


def requests_of(share: float) -> Any:
    """Settings of a test that sends a share of all requests, the same ones every time."""
    return hypothesis.settings(
        max_examples=max(5, int(REQUESTS * share)),
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )


def tell() -> None:
    """Prints what was answered so far, if the storm is a full one."""
    if REQUESTS < 20_000:
        return
    print(f"\n{sum(COUNTS.values()):,} requests")
    for (path, status), times in sorted(COUNTS.items()):
        print(f"{path:16} {status or 'none':>4} {times:7,}")


def require_sound(status: int, kind: str, body: bytes, secrets: Sequence[str]) -> None:
    """Asserts what holds of every answer."""
    text = body.decode("utf-8", "replace")
    for secret in ("Traceback", 'File "', "site-packages", sys.prefix, *secrets):
        assert secret not in text, text[:2000]
    assert status < 500, text[:2000]
    if status < 400:
        return
    assert kind == "application/problem+json", kind
    members = json.loads(body)
    assert members["status"] == status
    assert all(isinstance(members[p], str) and members[p] for p in PARTS), members
    assert len(body) < 4000
    assert len(members["found"]) <= 100


@dataclass
class Server:
    """An app in process, asked one request at a time."""

    runner: asyncio.Runner
    client: httpx.AsyncClient
    service: Service
    secrets: tuple[str, ...]
    documented: dict[str, Any] = field(default_factory=dict)

    def send(self, request: httpx.Request) -> httpx.Response:
        """Sends a request, counts the answer and holds it to the rules."""
        answer = self.runner.run(self.client.send(request))
        path = request.url.path
        operation = self.documented.get(path, {}).get(request.method.lower())
        COUNTS[path if operation else "other", answer.status_code] += 1
        kind = answer.headers.get("content-type", "")
        require_sound(answer.status_code, kind, answer.content, self.secrets)
        if operation:
            stated = operation["responses"]
            assert str(answer.status_code) in stated, (path, answer.text)
            assert kind.split(";")[0] in stated[str(answer.status_code)]["content"]
        return answer

    def post(self, path: str, body: bytes, **headers: str) -> httpx.Response:
        """Sends a body."""
        return self.send(httpx.Request("POST", f"http://t{path}", content=body, headers=headers))

    def get(self, path: str) -> httpx.Response:
        """Asks for a page, with the token of the client."""
        return self.send(self.client.build_request("GET", path))


@contextmanager
def in_process(folder: Path, token: str = "") -> Iterator[Server]:
    """Serves an artefact in this process."""
    config = ServiceConfig(
        artifact=folder,
        limits=Limits(deadline_ms=60_000.0, max_rows=MOST_ROWS, max_body_bytes=1 << 20),
    )
    with asyncio.Runner() as runner:
        service = Service(config, (digest(token.encode()),) if token else ())
        running = service.running()
        runner.run(running.__aenter__())
        transport = httpx.ASGITransport(create_app(service), raise_app_exceptions=False)
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        client = httpx.AsyncClient(transport=transport, base_url="http://t", headers=headers)
        secrets = (str(folder), *([token] if token else []))
        server = Server(runner, client, service, secrets)
        try:
            server.documented = server.get("/openapi.json").json()["paths"]
            yield server
        finally:
            runner.run(client.aclose())
            runner.run(running.__aexit__(None, None, None))


# ---- JSON

_DEEP = 100_000
_WORDS = (
    "NaN Infinity -Infinity 1e400 -1e400 1e308 3.5e38 1e-400 -0.0 1e999999999 1E+2 "
    '7.0 7.5 00 - +1 0x10 1_000 null true false undefined [] {} [null] [[]] [[1]] "" '
    '"7" "a|b||c|" "../../../etc/passwd" "<script>" /**/1 1, '
)
LITERALS = (
    *_WORDS.split(),
    str(2**53 + 1),
    str(2**63 - 1),
    str(2**63),
    str(-(2**63)),
    str(-(2**63) - 1),
    str(2**64),
    str(2**70),
    str(10**18 + 1),
    "9" * 5000,
    "-" + "9" * 400,
    "0." + "1" * 5000,
    "[1, 2]",
    "[1.5, null]",
    '["a", 1, null, true]',
    '{"a": 1}',
    '"' + "x" * 50_000 + '"',
    '"' + "é" * 3000 + '"',
    '"\\ud800"',
    '"\\udc00\\ud800"',
    '"\\u0000"',
    '"\\uFFFF"',
    '"\x7f"',
    '"\x01"',
    '"' + "|" * 3000 + '"',
    "'a'",
    '"\\x41"',
    "[" * _DEEP,
    "[" * _DEEP + "]" * _DEEP,
    '{"a":' * 5000 + "1" + "}" * 5000,
    "[" + "0," * 3000 + "0]",
    "[" + '"t1",' * 3000 + '"t1"]',
    '"' + "\\" * 3,
    '1, "price": 2',
)
NAMES = (
    "",
    "rows",
    "user",
    "candidates",
    "bids_micros",
    "nobody",
    "click",
    "\u0000",
    "é" * 200,
    "x" * 3000,
    "__class__",
    "ad",
    "past",
    "price",
)


@st.composite
def hostile_json(draw: Any, examples: Sequence[Any]) -> bytes:
    """A valid body with some of its parts replaced, doubled or left out, then perhaps broken."""
    body = json.loads(json.dumps(draw(st.sampled_from(examples))))
    literals: list[str] = []
    for _ in range(draw(st.integers(0, 3))):
        places = list(_places(body))
        holder, key = places[draw(st.integers(0, len(places) - 1))]
        match draw(
            st.sampled_from(("literal", "literal", "drop", "add", "double", "swap", "many"))
        ):
            case "literal":
                literals.append(draw(st.sampled_from(LITERALS)))
                holder[key] = f"@@{len(literals) - 1}@@"
            case "drop":
                del holder[key]
            case "add" if isinstance(holder, dict):
                holder[draw(st.sampled_from(NAMES))] = holder[key]
            case "add" | "double" if isinstance(holder, list):
                holder.append(holder[key])
            case "double":  # a key that stands twice: JSON text can, a dictionary cannot
                literals.append(json.dumps(holder[key]) + f", {json.dumps(key)}: null")
                holder[key] = f"@@{len(literals) - 1}@@"
            case "swap":
                other, there = places[draw(st.integers(0, len(places) - 1))]
                holder[key] = json.loads(
                    json.dumps(other.get(there) if isinstance(other, dict) else key)
                )
            case "many" if isinstance(holder, list):
                holder.extend([holder[key]] * draw(st.sampled_from((1, MOST_ROWS, MOST_ROWS + 1))))
        if not body:
            break
    text = json.dumps(body, ensure_ascii=draw(st.booleans()))
    for i, literal in enumerate(literals):
        text = text.replace(f'"@@{i}@@"', literal)
    return draw(broken(text.encode("utf-8", "surrogatepass")))


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    keys = list(value) if isinstance(value, dict) else range(len(value))
    for key in keys:
        yield value, key
        if isinstance(value[key], dict | list):
            yield from _places(value[key])


# ---- bytes

_PIECES = (
    b"",
    b"\x00",
    b"\xff",
    b"\xc3",
    b"\xed\xa0\x80",
    b"\xf5\x80\x80\x80",
    b"\xef\xbb\xbf",
    b'"',
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b"\\",
    b"NaN",
    b"\r\n\r\n",
    b"\xff\xff\xff\x7f",
    b"\x00\x00\x00\x80",
    b"\xff" * 8,
    b"\x00" * 8,
    b"\xff\xff\xff\xff\x00\x00\x00\x00",
    b"\x00" * 64,
    struct.pack("<q", 1 << 40),
    struct.pack("<i", 1 << 24),
)


@st.composite
def broken(draw: Any, body: bytes, most: int = 3) -> bytes:
    """Flips bits, cuts, splices and overwrites; or leaves the bytes as they are."""
    for _ in range(draw(st.sampled_from((0,) * most + (*range(most + 1),)))):
        at = draw(st.integers(0, max(len(body) - 1, 0)))
        piece = draw(st.sampled_from(_PIECES))
        match draw(
            st.sampled_from(("flip", "cut", "insert", "write", "aligned", "leave out", "repeat"))
        ):
            case "flip":
                flipped = bytearray(body)
                if flipped:
                    flipped[at] ^= 1 << draw(st.integers(0, 7))
                body = bytes(flipped)
            case "cut":
                body = body[:at]
            case "insert":
                body = body[:at] + piece + body[at:]
            case "write":
                body = body[:at] + piece + body[at + len(piece) :]
            case "aligned":
                at -= at % 8
                body = body[:at] + piece + body[at + len(piece) :]
            case "leave out":
                body = body[:at] + body[at + draw(st.integers(1, 16)) :]
            case "repeat":
                body = body[:at] + body[max(at - 64, 0) :]
    return body


# ---- Arrow


def stream(table: pa.Table, **options: Any) -> bytes:
    """Returns a table as an IPC stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def _column(n: int, which: int) -> pa.Array:
    """A column of n rows, of some odd type."""
    texts = pa.array([f"b{i}" for i in range(n)])
    whole = pa.array(range(n), pa.int64())
    lists = pa.array([[i] for i in range(n)], pa.list_(pa.int64()))
    made = [
        lambda: texts,
        lambda: whole,
        lambda: lists,
        lambda: pa.nulls(n),
        lambda: pa.nulls(n, pa.string()),
        lambda: pa.nulls(n, pa.list_(pa.int64())),
        lambda: texts.dictionary_encode(),
        lambda: whole.dictionary_encode(),
        lambda: texts.cast(pa.large_string()),
        lambda: texts.cast(pa.binary()),
        lambda: texts.cast(pa.string_view()),
        lambda: lists.cast(pa.large_list(pa.int64())),
        lambda: pa.array([[1.5, float("nan")]] * n),
        lambda: pa.array([[0.0, 1e300]] * n),
        lambda: pa.array([[None, None]] * n, pa.list_(pa.float32())),
        lambda: pa.array([[[1]]] * n),
        lambda: pa.FixedSizeListArray.from_arrays(pa.array([0.5] * 2 * n), 2),
        lambda: pa.array([{"a": 1}] * n),
        lambda: pa.array([{"a": []}] * n),
        lambda: pa.array([float("nan")] * n),
        lambda: pa.array([float("inf")] * n),
        lambda: pa.array([1e308] * n),
        lambda: pa.array([2**64 - 1] * n, pa.uint64()),
        lambda: pa.array([True] * n),
        lambda: whole.cast(pa.timestamp("us")),
        lambda: whole.cast(pa.duration("s")),
        lambda: pa.array([1] * n, pa.decimal128(38, 2)),
        lambda: pa.array([1.5] * n, pa.float16()),
        lambda: pa.array([[("k", 1)]] * n, pa.map_(pa.string(), pa.int64())),
        lambda: pa.array([["a", None]] * n),
        lambda: pa.array([b"\xff\xfe"] * n).view(pa.string()) if n else texts,
        lambda: pa.array([["t1|t2", ""]] * n),
        lambda: pa.array([""] * n),
        lambda: pa.array([-(2**63)] * n, pa.int64()),
        lambda: pa.array(["\x00"] * n),
        lambda: pa.array([["t0"] * 300] * n),
        lambda: pa.ExtensionArray.from_storage(pa.uuid(), pa.array([b"0" * 16] * n, pa.binary(16))),
        lambda: (
            pa.RunEndEncodedArray.from_arrays(pa.array([n], pa.int32()), pa.array([1]))
            if n
            else whole
        ),
        lambda: pa.UnionArray.from_sparse(pa.array([0] * n, pa.int8()), [whole]),
        lambda: pa.DictionaryArray.from_arrays(
            pa.array([9] * n, pa.int32()), pa.array(["a"]), safe=False
        ),
    ]
    return made[which]()


ODD_COLUMNS = 40


@st.composite
def hostile_arrow(draw: Any, frames: Sequence[Sequence[pl.DataFrame]]) -> bytes:
    """Valid streams with columns of other types, other lengths, compression, or broken bytes."""
    parts = []
    for frame in draw(st.sampled_from(frames)):
        table = frame.to_arrow()
        n = draw(st.sampled_from((1, 1, 2, 0, MOST_ROWS, MOST_ROWS + 1, 10_000)))
        table = (
            pa.concat_tables([table] * (-(-n // max(len(table), 1)) or 1))
            .slice(0, n)
            .combine_chunks()
        )
        for _ in range(draw(st.integers(0, 2))):
            name = draw(st.sampled_from((*table.column_names, *NAMES)))
            column = _column(len(table), draw(st.integers(0, ODD_COLUMNS - 1)))
            at = table.schema.get_field_index(name)
            match draw(st.sampled_from(("set", "set", "append", "drop"))):
                case "set" if at >= 0:
                    table = table.set_column(
                        at,
                        pa.field(
                            name, column.type, draw(st.booleans()) or column.type == pa.null()
                        ),
                        column,
                    )
                case "drop" if at >= 0:
                    table = table.remove_column(at)
                case _:
                    table = table.append_column(name, column)
        options: dict[str, Any] = {
            "compression": draw(st.sampled_from((None, None, None, "zstd", "lz4")))
        }
        parts.append(stream(table, **options))
    if draw(st.integers(0, 9)) == 0:
        parts = parts * 2 if draw(st.booleans()) else parts[:-1]
    return draw(broken(b"".join(parts)))
