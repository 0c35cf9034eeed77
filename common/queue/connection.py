"""Calls to one Redis: outages are waited out, wrong passwords are named, lost groups made again.

The only file that imports redis. `common.queue.broker` says what is called; whoever calls sees a
`QueueError` or an answer. An outage is a Redis that cannot take the call now and may later: no
connection, loading its data, out of memory, out of disk, or a replica that is no primary yet.
"""

import asyncio
import logging
import re
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar, cast

from redis import exceptions as redis_errors
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from common.errors import AccessError, ConfigError, QueueError, RunLostError
from common.logs import SAY_EVERY_S, NowAndThen
from common.queue.access import REDIS_URL
from common.queue.stream_entries import Command, ServerFacts
from common.rest.address import host_port

log = logging.getLogger(__name__)

SOCKET_TIMEOUT_S = 20.0
CONNECT_TIMEOUT_S = 3.0
"""An address that swallows packets is named before somebody wonders, and a stop is heard."""
FIRST_RETRY_S, LAST_RETRY_S = 0.05, 1.0
OLDEST_SERVER = (6, 2)
PINGS = 21
"""Calls of which `describe` takes the median."""
UNTRUSTED = "CERTIFICATE_VERIFY_FAILED"
"""In OpenSSL's words; waiting does not mend it."""

_LOST = (redis_errors.ConnectionError, redis_errors.TimeoutError)
_REFUSED = (redis_errors.AuthenticationError, redis_errors.AuthorizationError)
_UNABLE = (
    redis_errors.BusyLoadingError,
    redis_errors.MasterDownError,
    redis_errors.OutOfMemoryError,
    redis_errors.ReadOnlyError,
    redis_errors.TryAgainError,
)
"""Answers of a Redis that is there and cannot write now; redis-py names these ..."""
_UNABLE_CODE = re.compile(r"\b(BUSY|LOADING|MASTERDOWN|MISCONF|NOREPLICAS|OOM|READONLY|TRYAGAIN)\b")
"""... and leaves the others, and whatever comes out of a script, to their text."""

_GROUP_GONE = re.compile(r"\b(NOGROUP|UNBLOCKED)\b")
"""UNBLOCKED is what Redis 7.0 tells who waits at a stream that a new run deletes; from 7.2 on it is
NOGROUP, and 6.2 lets him wait on."""

_FENCED = re.compile(r"FENCED (\d+) (\d+)")
"""Of `scripts.FENCED`: the later epoch and ours."""

T = TypeVar("T")


class Connection:
    """One Redis. Used from one event loop."""

    def __init__(
        self,
        redis_url: str,
        *,
        password: str | None,
        outage_s: float,
        groups: Sequence[tuple[str, str]],
        should_stop: Callable[[], bool] = lambda: False,
        knob: str = REDIS_URL,
        **options: Any,
    ) -> None:
        """Contact nothing yet.

        Args:
            redis_url: where Redis is.
            password: its password.
            outage_s: how long a call bears a Redis that cannot take it.
            groups: streams and their consumer groups, made again whenever they are gone.
            should_stop: once it says so, an outage is borne no longer.
            knob: what the address was named by.
            options: user and TLS, as `common.queue.access` gives them.

        Raises:
            ConfigError: the URL is not one.
        """
        try:
            self._redis: Redis = Redis.from_url(
                redis_url,
                password=password,
                **options,
                decode_responses=True,
                protocol=2,
                socket_timeout=SOCKET_TIMEOUT_S,
                socket_connect_timeout=CONNECT_TIMEOUT_S,
                retry=Retry(NoBackoff(), 0),  # `call` retries, and says so in the log
            )
        except ValueError as error:
            raise ConfigError(f"{knob}: found {redis_url!r}: {error}") from error
        where = self._redis.connection_pool.connection_kwargs
        place = host_port(where.get("host", "localhost"), where.get("port", 6379))
        self.where = f"Redis at {where.get('path', place)}"
        self.num_outages = 0
        """Outages and losses that were got over: what Redis holds may be older than before."""
        self._is_failing = False
        """Also after a call that gave up: the next one that succeeds has got over it."""
        self._outage_s = outage_s
        self._groups = groups
        self._should_stop = should_stop
        self._knob = knob
        self._word = NowAndThen()

    async def close(self) -> None:
        """Close all connections."""
        await self._redis.aclose()

    async def wait_ready(self, timeout_s: float | None = None) -> None:
        """Wait until Redis answers, logging what is waited for; then make the consumer groups.

        Raises:
            AccessError: wrong password (at once).
            QueueError: a server older than 6.2, or time is up.
        """
        patience_s = float("inf") if timeout_s is None else timeout_s
        info = await self.call(lambda: self._redis.info(), patience_s=patience_s)
        version = str(info["redis_version"])
        if tuple(int(part) for part in version.split(".")[:2]) < OLDEST_SERVER:
            raise QueueError(f"{self.where}: found version {version}, wanted 6.2 or later")
        if not info.get("aof_enabled"):
            log.warning("redis will lose what is in flight when it restarts: set appendonly yes")
        await self.make_groups()

    async def describe(self) -> ServerFacts:
        """What the server says of itself.

        Raises:
            QueueError: as `call`.
        """
        info = await self.call(lambda: self._redis.info())
        took_s = []
        for _ in range(PINGS):
            began_s = time.perf_counter()
            seconds, micros = await self.call(lambda: self._redis.time())
            took_s.append(time.perf_counter() - began_s)
        return ServerFacts(
            version=str(info["redis_version"]),
            keeps_aof=bool(info.get("aof_enabled")),
            max_memory_bytes=int(info.get("maxmemory", 0)),
            eviction=str(info.get("maxmemory_policy", "noeviction")),
            clock_s=int(seconds) + int(micros) / 1e6,
            round_trip_s=statistics.median(took_s),
        )

    async def run(self, *command: Any, **parsing: Any) -> Any:
        """One command."""
        return await self.call(lambda: self._command(*command, **parsing))

    async def evaluate(
        self, script: str, keys: Sequence[str], *arguments: Any, patience_s: float | None = None
    ) -> Any:
        """One Lua script, atomic."""
        command = ("EVAL", script, len(keys), *keys, *arguments)
        return await self.call(lambda: self._command(*command), patience_s=patience_s)

    async def add(self, *command: Any) -> bool:
        """A command that appends to a stream; False if it has had that id, or a later one."""

        async def append() -> bool:
            try:
                await self._command(*command)
            except redis_errors.ResponseError as error:
                if "equal or smaller" in str(error):
                    return False
                raise
            return True

        return await self.call(append)

    async def transaction(self, *commands: Command) -> list[Any]:
        """All commands or none."""

        async def execute() -> list[Any]:
            async with self._redis.pipeline(transaction=True) as transaction:
                for command in commands:
                    transaction.execute_command(*command)
                return await transaction.execute()

        return await self.call(execute)

    async def make_groups(self) -> None:
        """Make the consumer groups that are not there."""
        await self.call(self._make_groups)

    async def call(
        self, command: Callable[[], Awaitable[T]], *, patience_s: float | None = None
    ) -> T:
        """Run a command: wait out an outage, make lost consumer groups again, name the rest.

        Raises:
            QueueError: Redis is away for too long, or refuses us (AccessError).
            RunLostError: the command was fenced (`fence`), and there is a later learner.
        """
        patience_s = self._outage_s if patience_s is None else patience_s
        give_up_at, pause_s = time.monotonic() + patience_s, FIRST_RETRY_S
        while True:
            # One that is frozen takes connections and says nothing for `SOCKET_TIMEOUT_S`.
            loop = asyncio.get_running_loop()
            slow = loop.call_later(SAY_EVERY_S, self._say_waiting, "connected, and no answer yet")
            try:
                answer = await command()
            except redis_errors.RedisError as error:
                self._is_failing = True
                if isinstance(error, _REFUSED):
                    raise AccessError(
                        f"{self.where} refuses this password: {error}; set TEMPSAMP_REDIS_PASSWORD"
                    ) from error
                if UNTRUSTED in str(error):
                    raise AccessError(
                        f"{self.where} has a certificate that is not trusted: {error}; wanted one "
                        "of its name, signed by shared.redis_ca or a CA of the system"
                    ) from error
                if fenced := _FENCED.match(str(error)):
                    raise RunLostError(self._taken_over(*fenced.groups())) from error
                if _is_outage(error):
                    if time.monotonic() + pause_s > give_up_at or self._should_stop():
                        raise QueueError(self._outage(error, patience_s)) from error
                    await self._note_outage(error, patience_s)
                elif _GROUP_GONE.search(str(error)):
                    await self.make_groups()
                else:
                    raise QueueError(f"{self.where}: {error}") from error
            else:
                self.num_outages += self._is_failing
                self._is_failing = False
                return answer
            finally:
                slow.cancel()
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LAST_RETRY_S)

    def _command(self, *command: Any, **parsing: Any) -> Awaitable[Any]:
        reply = self._redis.execute_command(*command, **parsing)  # type: ignore[no-untyped-call]
        return cast(Awaitable[Any], reply)

    async def _make_groups(self) -> None:
        for stream, group in self._groups:
            try:
                await self._redis.xgroup_create(stream, group, id="0", mkstream=True)
            except redis_errors.ResponseError as error:
                if "BUSYGROUP" not in str(error):
                    raise

    def _taken_over(self, theirs: str, ours: str) -> str:
        return (
            f"{self.where}: found a learner of epoch {theirs}, this one is of epoch {ours}: the "
            "run was taken over; nothing was changed"
        )

    def _outage(self, error: Exception, patience_s: float) -> str:
        if isinstance(error, _LOST):
            return (
                f"{self.where}: no answer for {patience_s:.0f} s ({error}); "
                f"start it, or correct {self._knob}"
            )
        return (
            f"{self.where}: refused to write for {patience_s:.0f} s ({error}); it needs memory, "
            "disk or its primary back"
        )

    async def _note_outage(self, error: Exception, patience_s: float) -> None:
        if not isinstance(error, _LOST):
            # After a failover the name may stand for another server than the one we are tied to.
            await self._redis.connection_pool.disconnect(inuse_connections=False)
        # Who gives up before a second line says why in its own.
        if patience_s >= SAY_EVERY_S:
            self._say_waiting(str(error))

    def _say_waiting(self, why: str) -> None:
        if self._word.is_due():
            log.warning("waiting for redis", extra={"redis": self.where, "error": why})


def _is_outage(error: redis_errors.RedisError) -> bool:
    """Whether the same call may succeed later."""
    return isinstance(error, (*_LOST, *_UNABLE)) or bool(_UNABLE_CODE.search(str(error)))
