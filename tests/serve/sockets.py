"""Bytes over a socket: what no client library would send."""

from __future__ import annotations

import contextlib
import re
import socket
import time
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

from .storm import COUNTS, broken, require_sound

_QUIET = 0.02  # seconds without a byte, after which the client says that it has said everything
_PATIENCE = 30.0
_HEAD = b"Host: x\r\n"
_SCORE = b"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


def talk(port: int, said: bytes, quiet: float = _QUIET) -> bytes:
    """Sends bytes on a connection of their own and returns all that comes back."""
    with socket.create_connection(("127.0.0.1", port), timeout=_PATIENCE) as line:
        with contextlib.suppress(ConnectionError):
            line.sendall(said)
        return _heard(line, quiet)


def _heard(line: socket.socket, quiet: float) -> bytes:
    heard, until = b"", time.monotonic() + _PATIENCE
    line.settimeout(quiet)
    with contextlib.suppress(ConnectionError):
        while time.monotonic() < until:
            try:
                piece = line.recv(1 << 16)
            except TimeoutError:
                line.settimeout(_PATIENCE)
                line.shutdown(socket.SHUT_WR)
                continue
            if not piece:
                return heard
            heard += piece
    assert time.monotonic() < until, "the server neither answered nor hung up"
    return heard


def answers(heard: bytes) -> list[tuple[int, str, bytes]]:
    """Takes answers apart into status, type and body; the server always says how long it is."""
    found = []
    while heard:
        head, _, rest = heard.partition(b"\r\n\r\n")
        assert re.match(rb"HTTP/1\.1 [1-5]\d\d ", head), heard[:200]
        status = int(head[9:12])
        kind = re.search(rb"(?im)^content-type: ([^\r\n]*)", head)
        length = re.search(rb"(?im)^content-length: (\d+)", head)
        size = int(length[1]) if length else 0
        if not rest or rest.startswith(b"HTTP/1.1 "):  # to HEAD: a length, and no body
            size = 0
        if status >= 200:
            found.append((status, kind[1].decode() if kind else "", rest[:size]))
        heard = rest[size:]
    return found


def require_sane(
    port: int, said: bytes, secrets: Sequence[str], quiet: float = _QUIET
) -> list[int]:
    """Sends bytes, holds every answer to the rules, and returns the statuses."""
    found = answers(talk(port, said, quiet))
    for status, kind, body in found:
        COUNTS["socket", status] += 1
        if body:
            require_sound(status, kind, body, secrets)
        assert status < 500
    if not found:
        COUNTS["socket", 0] += 1
    return [status for status, _, _ in found]


def post(body: bytes, *lines: bytes) -> bytes:
    """Returns a request with a body, its right length, and more lines in its head."""
    more = b"".join(line + b"\r\n" for line in (*lines, b"Content-Length: %d" % len(body)))
    return _SCORE + more + b"\r\n" + body


def chunked(body: bytes, *lines: bytes) -> bytes:
    """Returns the same in two chunks."""
    more = b"".join(line + b"\r\n" for line in (*lines, b"Transfer-Encoding: chunked"))
    parts = [body[: len(body) // 2], body[len(body) // 2 :], b""]
    return _SCORE + more + b"\r\n" + b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in parts)


# What two readers could understand differently: it must end the connection, with one answer.
SMUGGLED = {
    "two lengths": b"Content-Length: 2\r\nContent-Length: 40\r\n\r\n{}",
    "a list of lengths": b"Content-Length: 2, 40\r\n\r\n{}",
    "length and chunks": b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks and length": b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n0\r\n\r\n",
    "chunks that are no last coding": b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "another coding": b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "a negative length": b"Content-Length: -1\r\n\r\n",
    "a signed length": b"Content-Length: +2\r\n\r\n{}",
    "a length in hex": b"Content-Length: 0x2\r\n\r\n{}",
    "a length beyond 64 bits": b"Content-Length: 18446744073709551618\r\n\r\n{}",
    "a space before the colon": b"Content-Length : 2\r\n\r\n{}",
    "a folded line": b"X: a\r\n Content-Length: 40\r\nContent-Length: 2\r\n\r\n{}",
    "a chunk of negative size": b"Transfer-Encoding: chunked\r\n\r\n-1\r\n\r\n",
    "a chunk beyond 64 bits": b"Transfer-Encoding: chunked\r\n\r\n1" + b"0" * 15 + b"2\r\n{}\r\n",
    "a chunk without its end": b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}XX0\r\n\r\n",
    "a zero byte in a name": b"Content-\x00Length: 2\r\n\r\n{}",
    "a zero byte in a value": b"X: a\x00b\r\nContent-Length: 2\r\n\r\n{}",
    "a bare carriage return": b"X: a\rContent-Length: 40\r\nContent-Length: 2\r\n\r\n{}",
    "two hosts": b"Host: y\r\nContent-Length: 2\r\n\r\n{}",
}
_NEXT = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"


def smuggled(name: str, *lines: bytes) -> bytes:
    """Returns one of them, with a request after it."""
    return _SCORE + b"".join(line + b"\r\n" for line in lines) + SMUGGLED[name] + _NEXT


@st.composite
def hostile_http(draw: Any, body: bytes, *lines: bytes) -> bytes:
    """A few requests on one connection, some of them broken."""
    sound = (
        post(body, *lines),
        post(b"{}", *lines),
        chunked(body, *lines),
        _NEXT,
        b"GET / HTTP/1.0\r\n\r\n",
        b"HEAD /v1/model HTTP/1.1\r\n" + _HEAD + b"\r\n",
        b"OPTIONS * HTTP/1.1\r\n" + _HEAD + b"\r\n",
        b"GET http://y/%00%ff/../../etc HTTP/1.1\r\n" + _HEAD + b"\r\n",
        b"CONNECT x:1 HTTP/1.1\r\n" + _HEAD + b"\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\n" + _HEAD + b"Upgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\n" + _HEAD + b"X: " + b"a" * 100_000 + b"\r\n\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n" + _HEAD + b"\r\n",
        b"GET /healthz HTTP/1.1\r\n" + _HEAD + b"a: b\r\n" * 5000 + b"\r\n",
        post(body, *lines, b"Expect: 100-continue"),
        post(body, *lines, b"Content-Encoding: gzip"),
        post(body, *lines, b"Accept: " + b"*/*," * 500),
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"\x00" * 300,
        b"\r\n" * 300,
    )
    said = b"".join(draw(st.lists(st.sampled_from(sound), min_size=1, max_size=3)))
    if draw(st.integers(0, 7)) == 0:
        said += draw(st.binary(max_size=200))
    return draw(broken(said))
