"""Connections of one server: how many there may be, and how long a request may take to arrive.

uvicorn waits for ever for the rest of a request, and takes connections until its files run out;
both need no token. Handed to uvicorn as its protocol (`common.rest.serving` does), `Connections`
ends a request whose head or body comes too slowly, and when there are too many it gives up the
oldest connection on which nobody is being answered: health checks get in while somebody holds every
place. With an answer in work on all of them, the newcomer gets 503.
"""

import asyncio
import logging
import time
from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

logger = logging.getLogger(__name__)

HEAD_S = 10.0
"""From a connection, or the first byte of a further request on it, to the end of the headers."""
BODY_S = 120.0
"""From there to the end of the body: 16 MB over a link of 2 Mbit/s take half of it."""
REST_S = 10.0
"""The same once the request was answered without its body: there is no need for it any more."""
LOG_EVERY_S = 10.0
FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\nconnection: close\r\n"
    b"content-length: 0\r\n\r\n"
)


class Connections:
    """Makes the protocol of each connection of one process; picklable while there are none."""

    def __init__(
        self,
        limit: int,
        *,
        head_s: float = HEAD_S,
        body_s: float = BODY_S,
        rest_s: float = REST_S,
    ) -> None:
        """`limit`: connections at once; see the constants for the times."""
        self.limit = limit
        self.head_s = head_s
        self.body_s = body_s
        self.rest_s = rest_s
        self._unanswered: dict[BoundedProtocol, None] = {}
        """Nobody is being answered there; the longest first."""
        self._logged_s = -LOG_EVERY_S

    def __call__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> "BoundedProtocol":
        """What uvicorn calls for each connection."""
        return BoundedProtocol(self, config, server_state, app_state, _loop)

    def admit(self, protocol: "BoundedProtocol") -> bool:
        """Whether a new connection has a place, if need be that of the oldest unanswered one."""
        if len(protocol.connections) > self.limit:
            oldest = next(iter(self._unanswered), None)
            self._log(protocol, given_up=oldest is not None)
            if oldest is None:
                return False
            oldest.give_up()
        self.wait(protocol)
        return True

    def wait(self, protocol: "BoundedProtocol") -> None:
        """Nobody is being answered there from now on."""
        self._unanswered[protocol] = None

    def answer(self, protocol: "BoundedProtocol") -> None:
        """Somebody is, or it is closed."""
        self._unanswered.pop(protocol, None)

    def _log(self, protocol: "BoundedProtocol", *, given_up: bool) -> None:
        now_s = time.monotonic()
        if now_s - self._logged_s < LOG_EVERY_S:
            return
        self._logged_s = now_s
        logger.warning(
            "too many connections: "
            + ("the oldest idle ones are closed" if given_up else "new ones get 503"),
            extra={"client": protocol.client and protocol.client[0], "limit": self.limit},
        )


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 with a deadline for each request's head and body."""

    def __init__(self, bounds: Connections, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._bounds = bounds
        self._deadline: asyncio.TimerHandle | None = None
        """Of what is being received; None between requests (uvicorn has a timer there)."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A place, and time for a head."""
        super().connection_made(transport)
        if self._bounds.admit(self):
            self._expect(self._bounds.head_s)
        else:
            transport.write(FULL)
            transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """The place is free."""
        self._expect(None)
        self._bounds.answer(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Empty lines before a request stop uvicorn's timer too, and begin no message."""
        if self.transport.is_closing():
            return
        if self._deadline is None:
            self._expect(self._bounds.head_s)
        super().data_received(data)

    def on_message_begin(self) -> None:
        """Of a pipelined request, in the middle of what was received."""
        if self._deadline is None:
            self._expect(self._bounds.head_s)
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """The head is there."""
        self._expect(self._bounds.body_s)
        self._bounds.answer(self)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The whole request is there."""
        super().on_message_complete()
        answered = self.cycle is not None and self.cycle.response_complete
        # The rest of an answered request has stopped uvicorn's own timer, for good.
        self._expect(self.config.timeout_keep_alive if answered else None)

    def on_response_complete(self) -> None:
        """Answered, perhaps before its body had come."""
        super().on_response_complete()
        if self.cycle is not None and self.cycle.response_complete:
            self._bounds.wait(self)
            if self._deadline is not None:
                self._expect(self._bounds.rest_s)

    def give_up(self) -> None:
        """Close, answered or not."""
        self._bounds.answer(self)
        self.transport.close()

    def _expect(self, within_s: float | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = None
        if within_s is not None:
            self._deadline = self.loop.call_later(within_s, self._late, within_s)

    def _late(self, within_s: float) -> None:
        self._deadline = None
        cycle = self.cycle
        in_work = cycle is not None and not cycle.response_complete and not cycle.more_body
        if self.flow.read_paused or in_work:
            # It is we who do not read, or the next request is early: this one is in work.
            self._expect(within_s)
        elif not self.transport.is_closing():
            logger.info("request came too slowly", extra={"client": self.client})
            self.give_up()
