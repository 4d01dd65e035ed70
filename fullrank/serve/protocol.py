"""Protocol: HTTP/1.1 as uvicorn speaks it, with patience that ends.

uvicorn waits for ever for the head of a request, and for the rest of a body that nobody reads any
more. Here a client that is that slow is cut off; and what is no HTTP gets a problem for an answer.
"""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from fullrank.errors import RequestError
from fullrank.serve import problem

HEAD_SECONDS = 10.0  # for the head of a request, or the rest of a body after its answer


class PatientProtocol(H11Protocol):
    """One connection."""

    _timer: asyncio.TimerHandle | None = None

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
        super().data_received(data)
        self._watch()

    def send_400_response(self, msg: str) -> None:
        """Answers what is no HTTP."""
        error = RequestError(
            "this is no HTTP request",
            status=400,
            where="the connection",
            found="bytes that cannot be read",
            expected="HTTP/1.1",
            fix="see GET /openapi.json",
        )
        body = problem.problem_body(problem.problem(error))
        headers = [
            (b"content-type", problem.MEDIA_TYPE.encode()),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            for event in (
                h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
                h11.Data(data=body),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

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
