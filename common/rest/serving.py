"""A service as a process: a port of its own, bounded connections, an end in bounded time.

    listening = listen(host, port, knobs=("reward.host", "reward.port"))
    serve(app, listening, connections=1024, drain_s=30, end_s=35)    # until SIGTERM

A port that is taken is a `ConfigError`, one line and exit code 2 of `tempsamp`. SIGTERM gives
requests `drain_s` to end, cancels the others, half-sent ones too, and returns: the process exits
with 0. What still stands after `end_s` ends with it, exit code 1. All three services use it.
"""

import contextlib
import logging
import os
import resource
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, cast

import uvicorn
from uvicorn.supervisors import Multiprocess

from common.errors import ConfigError, TempSampError
from common.rest.address import base_url, family_of, warn_of_loopback
from common.rest.connections import Connections

logger = logging.getLogger(__name__)

BACKLOG = 2048
KEEP_ALIVE_S = 75
"""Longer than clients keep idle connections, so that none closes under a request."""
MOST_FILES = 65_536
OTHER_FILES = 256
"""Files that are no connections of callers: logs, Redis, neighbours, an engine's pipes."""
FEWEST_CONNECTIONS = 16


class ServiceError(TempSampError):
    """A service ended without being told to."""


def listen(
    host: str,
    port: int,
    *,
    knobs: tuple[str, str],
) -> socket.socket:
    """Bind and listen: who connects before the app is up waits instead of being refused.

    Args:
        host: name or address; `::` is all addresses of both families.
        port: 0 takes a free one.
        knobs: settings or options that name host and port.

    Raises:
        ConfigError: no such address here, or the port is taken; names value and knobs.
    """
    warn_of_loopback(host, knob=knobs[0])
    both = host == "::" and socket.has_dualstack_ipv6()
    try:
        return socket.create_server(
            (host, port), family=family_of(host), backlog=BACKLOG, dualstack_ipv6=both
        )
    except OSError as error:
        raise ConfigError(
            f"{', '.join(knobs)}: found {host} port {port}: {error.strerror or error}; wanted an "
            f"address of this machine and a free port ({knobs[1]} 0 takes one)"
        ) from error


def url_of(listening: socket.socket, host: str) -> str:
    """`http://host:port` of a socket."""
    return base_url(host, listening.getsockname()[1])


def room_for(connections: int) -> int:
    """As many connections as wanted, or as the limit on open files allows.

    That limit is raised as far as this process may; what is missing is said in the log.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(connections + OTHER_FILES, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        raised = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
            soft = raised
    if soft == resource.RLIM_INFINITY:
        return connections
    room = max(FEWEST_CONNECTIONS, min(connections, soft - OTHER_FILES))
    if room < connections:
        logger.warning(
            "fewer connections than max_connections: raise the limit on open files (ulimit -n)",
            extra={"found": soft, "wanted": connections + OTHER_FILES, "connections": room},
        )
    return room


def configured(
    app: Any, *, connections: int | Connections, drain_s: int, **more: Any
) -> uvicorn.Config:
    """uvicorn's settings, the same for every service.

    Args:
        app: the ASGI app, or with `factory=True` what makes it.
        connections: most at once.
        drain_s: see the module.
        more: what one service needs beyond that.
    """
    if isinstance(connections, int):
        connections = Connections(room_for(connections))
    return uvicorn.Config(
        app,
        # uvicorn only calls it.
        http=cast(Any, connections),
        ws="none",
        log_config=None,
        access_log=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=drain_s,
        **more,
    )


def serve(
    config: uvicorn.Config,
    listening: socket.socket,
    *,
    end_s: float,
    on_stop: Callable[[], None] | None = None,
) -> None:
    """Run until a signal comes; in the main thread.

    Args:
        config: of `configured`.
        listening: closed at the end.
        end_s: from the signal to the end of the process, whatever hangs.
        on_stop: called first of all when it is to end.

    Raises:
        ServiceError: the app did not start, or a worker does not.
    """
    if config.workers > 1:
        _Workers(config, listening, end_s=end_s).run_to_the_end()
        return
    server = Server(config, end_s=end_s, on_stop=on_stop)
    with _failing_loudly():
        server.run(sockets=[listening])


class Server(uvicorn.Server):
    """uvicorn's server; SIGTERM ends it, and not the process, and never takes longer than told."""

    def __init__(
        self,
        config: uvicorn.Config,
        *,
        end_s: float,
        on_stop: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(config)
        self._end_s = end_s
        self._on_stop = on_stop
        self._last_resort: threading.Timer | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal came."""
        super().handle_exit(sig, frame)
        if self._last_resort is None:
            # Never cancelled: at its end Python waits for threads that are still at work.
            self._last_resort = threading.Timer(self._end_s, _give_up, [self._end_s])
            self._last_resort.daemon = True
            self._last_resort.start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Called once it is to end."""
        if self._on_stop is not None:
            self._on_stop()
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """uvicorn raises a signal again that it obeyed, and then a clean end looks like a kill.
        Ctrl-C stays what it is: a shell has to know."""
        with super().capture_signals():
            yield
            self._captured_signals = [
                number for number in self._captured_signals if number != signal.SIGTERM
            ]


class _Workers(Multiprocess):
    """uvicorn's supervisor of several processes, with the same promises."""

    def __init__(self, config: uvicorn.Config, listening: socket.socket, *, end_s: float) -> None:
        super().__init__(config, [listening])
        self._end_s = end_s
        self._asked = False

    def run_to_the_end(self) -> None:
        """Until a signal came.

        Raises:
            ServiceError: a worker does not start.
        """
        self.run()
        if not self._asked:
            raise _failed("a worker process does not start; its log says why")

    def handle_int(self) -> None:
        """Ctrl-C."""
        self._asked = True
        super().handle_int()

    def handle_term(self) -> None:
        """SIGTERM."""
        self._asked = True
        super().handle_term()

    def join_all(self) -> None:
        """Who does not end is ended."""
        deadline_s = time.monotonic() + self._end_s
        for worker in self.processes:
            worker.process.join(max(0.0, deadline_s - time.monotonic()))
            if worker.process.is_alive():
                logger.critical("worker did not end in time", extra={"after_s": self._end_s})
                worker.process.kill()
        super().join_all()


@contextlib.contextmanager
def _failing_loudly() -> Iterator[None]:
    """When an app cannot start, uvicorn ends the process with code 3; the log has the reason."""
    try:
        yield
    except SystemExit as error:
        raise _failed("the service could not start; its log says why") from error


def _failed(why: str) -> ServiceError:
    logger.critical(why)
    return ServiceError(why)


def _give_up(after_s: float) -> None:
    logger.critical("did not end in time, giving up", extra={"after_s": after_s})
    os._exit(1)
