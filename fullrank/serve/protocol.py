"""Protocol: HTTP/1.1 as uvicorn speaks it over llhttp, with patience that ends.

uvicorn waits for ever for the head of a request, however long it is, and for the rest of a body
that nobody reads any more. Here a client that is that slow is cut off, a head has a size, and what
is no HTTP gets a problem for an answer, unless an earlier request of its connection is still owed
one. llhttp refuses what two readers could understand differently, such as two lengths of a body.
Another protocol that a client offers is declined by silence, and its request answered.
"""

from __future__ import annotations

import asyncio
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from fullrank.errors import RequestError
from fullrank.serve import problem

HEAD_SECONDS = 10.0  # for the head of a request, or the rest of a body after its answer
MOST_HEAD = 1 << 16  # bytes of a head, and of what follows the last chunk of a body
MOST_WAITING = 1000  # requests of one connection that wait for earlier ones to be answered
_VERSIONS = ("1.0", "1.1")


class PatientProtocol(HttpToolsProtocol):
    """One connection."""

    _timer: asyncio.TimerHandle | None = None
    _in_head, _got_on, _last = False, False, False
    _unread = 0  # bytes since the last end of a head or piece of a body

    def connection_made(self, transport: Any) -> None:
        """Starts waiting for the first request."""
        super().connection_made(transport)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops waiting."""
        self._stop()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Reads; the clock runs unless a request is being answered.

        Between requests, and after an answer that came before the end of a body, uvicorn's own
        clock runs, until there is something to read.
        """
        if self.transport.is_closing():
            return
        self._unset_keepalive_if_required()
        self._got_on = False
        try:
            self._feed(data)
        except httptools.HttpParserError as cause:
            self.send_400_response(str(cause))
            return
        self._unread = 0 if self._got_on else self._unread + len(data)
        if self._unread > MOST_HEAD:
            self.send_400_response("too long")
            return
        self._watch()

    def _feed(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            if self._last:  # after the body of the last request that is answered
                return
            # trap: httptools ends a request that offers another protocol before its body, which
            # some clients offer with every request; another parser reads the body
            self._last = True
            framing = (b"content-length", b"transfer-encoding")
            lines = [name + b": " + value for name, value in self.headers if name in framing]
            self.cycle.keep_alive = False
            self.parser = httptools.HttpRequestParser(_Body(self))
            self.parser.feed_data(b"\r\n".join([b"POST / HTTP/1.1", *lines, b"", b""]))
            self._feed(data[upgrade.args[0] :])

    def on_message_begin(self) -> None:
        """Begins a head."""
        self._in_head = True
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keeps a line of the head; one that follows a body would come after its use."""
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Starts to answer a request whose head is sound.

        Raises:
            ValueError: it is not; the parser makes it an error of its own.
        """
        self._in_head, self._got_on = False, True
        hosts = sum(name == b"host" for name, _ in self.headers)
        version = self.parser.get_http_version()
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        sound = version in _VERSIONS and (hosts == 1 or (hosts == 0 and version == "1.0"))
        if not sound or size > MOST_HEAD or len(self.pipeline) >= MOST_WAITING:
            raise ValueError("this request is not read")
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Keeps a piece of a body."""
        self._got_on = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Ends a body, unless another parser goes on with it."""
        if not self.parser.should_upgrade():
            super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Answers what is no HTTP, in its turn, and hangs up."""
        answering = self.cycle is not None and not self.cycle.response_complete
        if answering and not self.cycle.more_body:
            self._close_after_answer()
            return
        if not answering or not (self.pipeline or self.cycle.response_started):
            self.transport.write(_NO_HTTP)
        self._stop()
        self.transport.close()

    def _close_after_answer(self) -> None:
        """Hangs up after the last request that was read has been answered."""
        self._stop()
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()
        else:
            self.cycle.keep_alive = False
            self.flow.pause_reading()

    def _watch(self) -> None:
        answering = self.cycle is not None and not self.cycle.response_complete
        if answering or self.transport.is_closing():
            self._stop()
        elif self._timer is None:
            self._timer = self.loop.call_later(HEAD_SECONDS, self._too_slow)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        self._timer = None
        self.transport.close()


class _Body:
    """What the parser of a body alone calls."""

    def __init__(self, protocol: PatientProtocol) -> None:
        self.on_body, self.on_message_complete = protocol.on_body, protocol.on_message_complete


def _no_http() -> bytes:
    error = RequestError(
        "this is no HTTP request",
        status=400,
        where="the connection",
        found="bytes that cannot be read",
        expected="HTTP/1.1",
        fix="see GET /openapi.json",
    )
    body = problem.problem_body(problem.problem(error))
    head = (
        f"HTTP/1.1 400 Bad Request\r\ncontent-type: {problem.MEDIA_TYPE}\r\n"
        f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )
    return head.encode() + body


_NO_HTTP = _no_http()
