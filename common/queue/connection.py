"""Calls to one Redis: outages are waited out, wrong passwords are named, lost groups made again.

The only file that imports redis. `common.queue.broker` says what is called; whoever calls sees a
`QueueError` or an answer. An outage is a Redis that cannot take the call now and may later: no
connection, loading its data, out of memory, out of disk, or a replica that is no primary yet.
"""

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar, cast

from redis import exceptions as redis_errors
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from common.errors import ConfigError, QueueError
from common.queue.stream_entries import Command

log = logging.getLogger(__name__)

SOCKET_TIMEOUT_S = 20.0
FIRST_RETRY_S, LAST_RETRY_S = 0.05, 1.0
LOG_OUTAGE_EVERY_S = 10.0
OLDEST_SERVER = (6, 2)
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
        **options: Any,
    ) -> None:
        """Contact nothing yet.

        Args:
            redis_url: where Redis is.
            password: its password.
            outage_s: how long a call bears a Redis that cannot take it.
            groups: streams and their consumer groups, made again whenever they are gone.
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
                retry=Retry(NoBackoff(), 0),  # `call` retries, and says so in the log
            )
        except ValueError as error:
            raise ConfigError(f"shared.redis_url: found {redis_url!r}: {error}") from error
        where = self._redis.connection_pool.connection_kwargs
        self.where = f"Redis at {where.get('host', 'localhost')}:{where.get('port', 6379)}"
        self.num_outages = 0
        """Outages and losses that were got over: what Redis holds may be older than before."""
        self._outage_s = outage_s
        self._groups = groups
        self._outage_logged_at = -LOG_OUTAGE_EVERY_S

    async def close(self) -> None:
        """Close all connections."""
        await self._redis.aclose()

    async def wait_ready(self, timeout_s: float | None = None) -> None:
        """Wait until Redis answers, logging what is waited for; then make the consumer groups.

        Raises:
            QueueError: wrong password (at once), a server older than 6.2, or time is up.
        """
        patience_s = float("inf") if timeout_s is None else timeout_s
        info = await self.call(lambda: self._redis.info(), patience_s=patience_s)
        version = str(info["redis_version"])
        if tuple(int(part) for part in version.split(".")[:2]) < OLDEST_SERVER:
            raise QueueError(f"{self.where}: found version {version}, wanted 6.2 or later")
        if not info.get("aof_enabled"):
            log.warning("redis will lose what is in flight when it restarts: set appendonly yes")
        await self.make_groups()

    async def run(self, *command: Any, **parsing: Any) -> Any:
        """One command."""
        return await self.call(lambda: self._command(*command, **parsing))

    async def evaluate(self, script: str, keys: Sequence[str], *arguments: Any) -> Any:
        """One Lua script, atomic."""
        return await self.run("EVAL", script, len(keys), *keys, *arguments)

    async def add(self, stream: str, entry_id: str, fields: Sequence[str]) -> bool:
        """Append to a stream; False if it has had that id, or a later one."""

        async def append() -> bool:
            try:
                await self._command("XADD", stream, entry_id, *fields)
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
        """Run a command: wait out an outage, make lost consumer groups again, name the rest."""
        patience_s = self._outage_s if patience_s is None else patience_s
        give_up_at, pause_s, failed = time.monotonic() + patience_s, FIRST_RETRY_S, False
        while True:
            try:
                answer = await command()
            except redis_errors.RedisError as error:
                failed = True
                if isinstance(error, _REFUSED):
                    raise QueueError(
                        f"{self.where} refuses this password: {error}; set TEMPSAMP_REDIS_PASSWORD"
                    ) from error
                if UNTRUSTED in str(error):
                    raise QueueError(
                        f"{self.where} has a certificate that is not trusted: {error}; wanted one "
                        "of its name, signed by shared.redis_ca or a CA of the system"
                    ) from error
                if _is_outage(error):
                    if time.monotonic() + pause_s > give_up_at:
                        raise QueueError(self._outage(error, patience_s)) from error
                    await self._note_outage(error)
                elif "NOGROUP" in str(error):
                    await self.make_groups()
                else:
                    raise QueueError(f"{self.where}: {error}") from error
            else:
                self.num_outages += failed
                return answer
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

    def _outage(self, error: Exception, patience_s: float) -> str:
        if isinstance(error, _LOST):
            return (
                f"{self.where}: no answer for {patience_s:.0f} s ({error}); "
                "start it, or correct shared.redis_url"
            )
        return (
            f"{self.where}: refused to write for {patience_s:.0f} s ({error}); it needs memory, "
            "disk or its primary back"
        )

    async def _note_outage(self, error: Exception) -> None:
        if not isinstance(error, _LOST):
            # After a failover the name may stand for another server than the one we are tied to.
            await self._redis.connection_pool.disconnect(inuse_connections=False)
        now = time.monotonic()
        if now - self._outage_logged_at >= LOG_OUTAGE_EVERY_S:
            self._outage_logged_at = now
            log.warning("waiting for redis", extra={"redis": self.where, "error": str(error)})


def _is_outage(error: redis_errors.RedisError) -> bool:
    """Whether the same call may succeed later."""
    return isinstance(error, (*_LOST, *_UNABLE)) or bool(_UNABLE_CODE.search(str(error)))
