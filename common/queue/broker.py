"""One run's Redis: prompts out, scored groups back, dead letters, registry.

The learner feeds a `PromptRequest`, a replica claims it and pushes a `ScoredGroup`, the learner
reads and acknowledges that. Delivery is at least once: a claim is a lease, a group stays until it
is acknowledged. Keys start with `tempsamp:<run_id>:`, bodies are the JSON of a wire type. While
Redis is away every call waits and retries, within bounds; lost consumer groups are made again. The
only file that imports redis.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar, cast

from redis import exceptions as redis_errors
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from common.config import Shared
from common.errors import ConfigError, QueueError
from common.messages import DeadLetter, PromptRequest, ReplicaStatus, ScoredGroup
from common.queue.access import connection_options
from common.queue.stream_entries import (
    DROP_RUN,
    HOLD_RUN,
    TOUCH_CLAIM,
    ClaimedPrompt,
    Command,
    Depths,
    Fields,
    dead_letter,
    finish,
    parse,
    to_fields,
)

__all__ = ["Broker", "ClaimedPrompt", "Depths"]

log = logging.getLogger(__name__)

ROLLOUT, LEARNER = "rollout", "learner"
"""Consumer groups of the two streams; the learner is also the only consumer of its group."""
SOCKET_TIMEOUT_S = 20.0
LONGEST_BLOCK_S = 10.0
"""A blocking read comes back after this long at most, well inside the socket timeout."""
FIRST_RETRY_S, LAST_RETRY_S = 0.05, 1.0
LOG_OUTAGE_EVERY_S = 10.0
ABANDONED_MS = 24 * 3600 * 1000
"""Idle time of a claim given back: longer than any lease, so that it is claimable at once."""
DEAD_LETTERS_KEPT = 10_000
FORGET_REPLICA_S = 3600
OLDEST_SERVER = (6, 2)

UNTRUSTED = "CERTIFICATE_VERIFY_FAILED"
"""In OpenSSL's words; waiting does not mend it."""
_OUTAGE = (redis_errors.ConnectionError, redis_errors.TimeoutError)
_REFUSED = (redis_errors.AuthenticationError, redis_errors.AuthorizationError)

T = TypeVar("T")


class Broker:
    """The messages of one run. One instance a process, used from one event loop."""

    def __init__(
        self,
        redis_url: str,
        *,
        run_id: str,
        password: str | None = None,
        outage_s: float = 120.0,
        **connection: Any,
    ) -> None:
        """Contact nothing yet.

        Args:
            redis_url: without secrets.
            run_id: prefix of every key.
            password: of the user.
            outage_s: how long a call bears an unreachable Redis.
            connection: user and TLS, as `common.queue.access` gives them.

        Raises:
            ConfigError: the URL is not one.
        """
        try:
            self._redis: Redis = Redis.from_url(
                redis_url,
                password=password,
                **connection,
                decode_responses=True,
                protocol=2,
                socket_timeout=SOCKET_TIMEOUT_S,
                retry=Retry(NoBackoff(), 0),  # `_call` retries, and says so in the log
            )
        except ValueError as error:
            raise ConfigError(f"shared.redis_url: found {redis_url!r}: {error}") from error
        where = self._redis.connection_pool.connection_kwargs
        self._where = f"Redis at {where.get('host', 'localhost')}:{where.get('port', 6379)}"
        self._outage_s = outage_s
        prefix = f"tempsamp:{run_id}"
        self._prompts, self._groups = f"{prefix}:prompts", f"{prefix}:groups"
        self._dead, self._holder = f"{prefix}:dead", f"{prefix}:learner"
        self._replicas = f"{prefix}:replicas"
        self._readers = {self._prompts: ROLLOUT, self._groups: LEARNER}
        self._history_from: str | None = "0-0"
        self._outage_logged_at = -LOG_OUTAGE_EVERY_S

    @classmethod
    def of(cls, shared: Shared) -> "Broker":
        """The broker of the run that `[shared]` describes.

        Raises:
            ConfigError: that Redis must not be used like this.
        """
        return cls(shared.redis_url, run_id=shared.run_id, **connection_options(shared))

    async def close(self) -> None:
        """Close all connections."""
        await self._redis.aclose()

    async def wait_ready(self, timeout_s: float | None = None) -> None:
        """Wait until Redis answers, logging what is waited for; then make the consumer groups.

        Raises:
            QueueError: wrong password (at once), a server older than 6.2, or time is up.
        """
        patience_s = float("inf") if timeout_s is None else timeout_s
        info = await self._call(lambda: self._redis.info(), patience_s=patience_s)
        version = str(info["redis_version"])
        if tuple(int(part) for part in version.split(".")[:2]) < OLDEST_SERVER:
            raise QueueError(f"{self._where}: found version {version}, wanted 6.2 or later")
        if not info.get("aof_enabled"):
            log.warning("redis will lose what is in flight when it restarts: set appendonly yes")
        await self._call(self._make_groups)

    # --- prompts ------------------------------------------------------------------------------

    async def feed_prompt(self, request: PromptRequest) -> bool:
        """Add a prompt under its sequence number; False if Redis has had that number before."""
        entry_id, fields = f"{request.sequence}-0", to_fields(request.prompt_id, request)

        async def add() -> bool:
            try:
                await self._command("XADD", self._prompts, entry_id, *fields)
            except redis_errors.ResponseError as error:
                if "equal or smaller" in str(error):
                    return False
                raise
            return True

        return await self._call(add)

    async def claim_prompt(
        self, replica: str, *, lease_s: float, block_s: float, max_attempts: int
    ) -> ClaimedPrompt | None:
        """Lease a prompt: one whose lease ended, else the next new one, else None after `block_s`.

        A prompt that cannot be read, or was handed out `max_attempts` times before (its replicas
        died over it), goes to the dead letters. `min_version` is the caller's business: a replica
        that is behind renews the lease while it waits for its weights, because what it sampled
        too early would only be dropped by the learner.
        """
        while True:
            entries = await self._expired(replica, lease_s=lease_s) or await self._read(
                self._prompts, replica, after=">", count=1, block_s=block_s
            )
            if not entries:
                return None
            entry_id, fields = entries[0]
            attempts = await self._deliveries(entry_id)
            request = parse(PromptRequest, fields)
            if isinstance(request, str):
                error = f"unreadable prompt: {request}"
            elif attempts > max_attempts:
                error = f"{attempts - 1} replicas died or lost their lease over it"
            else:
                return ClaimedPrompt(request, entry_id, replica, attempts)
            letter = dead_letter(fields, error=error, attempts=attempts, replica=replica)
            await self._bury(letter, stream=self._prompts, entry_id=entry_id)

    async def renew(self, claim: ClaimedPrompt) -> bool:
        """Start the lease anew. False: it had ended and the prompt is another replica's."""
        return await self._touch(claim, idle_ms=0, deliveries=claim.attempts)

    async def release(self, claim: ClaimedPrompt) -> None:
        """Give a prompt back unharmed: claimable at once, and the attempt does not count."""
        await self._touch(claim, idle_ms=ABANDONED_MS, deliveries=claim.attempts - 1)

    async def fail_prompt(self, claim: ClaimedPrompt, error: str, *, max_attempts: int) -> bool:
        """Give a prompt back for another try, or bury it after `max_attempts`. True: buried."""
        if claim.attempts < max_attempts:
            await self._touch(claim, idle_ms=ABANDONED_MS, deliveries=claim.attempts)
            return False
        if not await self.renew(claim):
            return False
        letter = DeadLetter(
            prompt_id=claim.request.prompt_id,
            error=error,
            attempts=claim.attempts,
            replica=claim.replica,
            body=claim.request.model_dump_json(),
        )
        await self._bury(letter, stream=self._prompts, entry_id=claim.entry_id)
        return True

    async def push_group(self, claim: ClaimedPrompt, group: ScoredGroup) -> None:
        """Hand a group to the learner and finish its prompt, in one transaction.

        After a lost lease, or a retry over a broken connection, the learner may get two groups of
        one prompt: it keeps the first.
        """
        await self._transaction(
            ("XADD", self._groups, "*", *to_fields(group.prompt_id, group)),
            *finish(self._prompts, ROLLOUT, claim.entry_id),
        )

    async def unfinished_prompts(self) -> set[str]:
        """Ids of the prompts in the stream, claimed or not."""
        entries = await self._run("XRANGE", self._prompts, "-", "+")
        return {fields.get("prompt_id", "") for _, fields in entries}

    # --- groups -------------------------------------------------------------------------------

    async def read_groups(self, max_count: int, *, block_s: float) -> list[tuple[str, ScoredGroup]]:
        """Next groups in stream order with their entry ids; empty after `block_s` without any.

        A new Broker first gets again what its predecessor read and never acknowledged. A group that
        cannot be read goes to the dead letters.
        """
        while True:
            replays, after = self._history_from is not None, self._history_from or ">"
            entries = await self._read(
                self._groups, LEARNER, after=after, count=max_count, block_s=block_s
            )
            if replays:
                self._history_from = entries[-1][0] if entries else None
            groups = await self._parse_groups(entries)
            if groups or not replays:
                return groups

    async def acknowledge_groups(self, entry_ids: Sequence[str]) -> None:
        """Delete groups for good: a checkpoint holds what they taught."""
        if entry_ids:
            await self._transaction(*finish(self._groups, LEARNER, *entry_ids))

    async def read_dead_letters(
        self, *, after: str = "0-0", max_count: int = 100
    ) -> list[tuple[str, DeadLetter]]:
        """Dead letters after entry id `after`, with their entry ids; they stay in the stream."""
        entries = await self._run("XRANGE", self._dead, f"({after}", "+", "COUNT", max_count)
        letters = [(entry_id, parse(DeadLetter, fields)) for entry_id, fields in entries]
        return [(entry_id, item) for entry_id, item in letters if isinstance(item, DeadLetter)]

    async def depths(self) -> Depths:
        """Queue lengths, for the metrics."""
        prompts, claimed, groups, unacknowledged, dead = await self._transaction(
            ("XLEN", self._prompts),
            ("XPENDING", self._prompts, ROLLOUT),
            ("XLEN", self._groups),
            ("XPENDING", self._groups, LEARNER),
            ("XLEN", self._dead),
        )
        return Depths(
            prompts_waiting=prompts - claimed["pending"],
            prompts_claimed=claimed["pending"],
            groups_unread=groups - unacknowledged["pending"],
            groups_unacknowledged=unacknowledged["pending"],
            dead_letters=dead,
        )

    async def reset_run(self) -> None:
        """Forget all messages of this run, and of no other; replicas and the run lease stay."""
        await self._run("DEL", self._prompts, self._groups, self._dead)
        await self._call(self._make_groups)
        self._history_from = "0-0"

    # --- registry and run lease ---------------------------------------------------------------

    async def announce(self, status: ReplicaStatus, *, ttl_s: float) -> None:
        """Show a replica to the learner for the next `ttl_s`."""
        key, now_s = self._status_key(status.replica), time.time()
        await self._transaction(
            ("ZADD", self._replicas, now_s, status.replica),
            ("ZREMRANGEBYSCORE", self._replicas, "-inf", now_s - FORGET_REPLICA_S),
            ("SET", key, status.model_dump_json(), "PX", round(ttl_s * 1000)),
        )

    async def withdraw(self, replica: str) -> None:
        """Take a replica out of the registry."""
        await self._run("DEL", self._status_key(replica))

    async def replicas(self) -> list[ReplicaStatus]:
        """Replicas whose announcement has not run out, by name."""
        names = await self._run("ZRANGE", self._replicas, 0, -1)
        if not names:
            return []
        found = await self._run("MGET", *(self._status_key(name) for name in sorted(names)))
        statuses = [parse(ReplicaStatus, {"body": status}) for status in found if status]
        return [status for status in statuses if isinstance(status, ReplicaStatus)]

    async def hold_run(self, holder: str, *, ttl_s: float) -> str:
        """Take or renew the right to be this run's learner. Returns who has it now."""
        ttl_ms = round(ttl_s * 1000)
        return str(await self._run("EVAL", HOLD_RUN, 1, self._holder, holder, ttl_ms))

    async def drop_run(self, holder: str) -> None:
        """Give that right up, if `holder` has it."""
        await self._run("EVAL", DROP_RUN, 1, self._holder, holder)

    # --- below: streams -----------------------------------------------------------------------

    def _status_key(self, replica: str) -> str:
        return f"{self._replicas}:{replica}"

    async def _expired(self, replica: str, *, lease_s: float) -> list[tuple[str, Fields]]:
        start, lease_ms = "0-0", round(lease_s * 1000)
        while True:
            start, entries, *_ = await self._run(
                *("XAUTOCLAIM", self._prompts, ROLLOUT, replica, lease_ms, start, "COUNT", 1)
            )
            # Redis 6.2 also hands out entries that were deleted, as None.
            if (found := [entry for entry in entries if entry[1]]) or start == "0-0":
                return found

    async def _deliveries(self, entry_id: str) -> int:
        command = ("XPENDING", self._prompts, ROLLOUT, entry_id, entry_id, 1)
        pending = await self._run(*command, parse_detail=True)
        return int(pending[0]["times_delivered"]) if pending else 1

    async def _touch(self, claim: ClaimedPrompt, *, idle_ms: int, deliveries: int) -> bool:
        arguments = (ROLLOUT, claim.entry_id, claim.replica, idle_ms, deliveries)
        return bool(await self._run("EVAL", TOUCH_CLAIM, 1, self._prompts, *arguments))

    async def _read(
        self, stream: str, consumer: str, *, after: str, count: int, block_s: float
    ) -> list[tuple[str, Fields]]:
        block_ms = round(min(block_s, LONGEST_BLOCK_S) * 1000)
        block = ("BLOCK", block_ms) if block_ms else ()
        reply = await self._run(
            *("XREADGROUP", "GROUP", self._readers[stream], consumer, "COUNT", count),
            *(*block, "STREAMS", stream, after),
        )
        return list(reply[0][1]) if reply else []

    async def _parse_groups(
        self, entries: list[tuple[str, Fields]]
    ) -> list[tuple[str, ScoredGroup]]:
        groups = []
        for entry_id, fields in entries:
            group = parse(ScoredGroup, fields)
            if isinstance(group, ScoredGroup):
                groups.append((entry_id, group))
                continue
            letter = dead_letter(fields, error=f"unreadable group: {group}", replica=LEARNER)
            await self._bury(letter, stream=self._groups, entry_id=entry_id)
        return groups

    async def _bury(self, letter: DeadLetter, *, stream: str, entry_id: str) -> None:
        fields = to_fields(letter.prompt_id, letter)
        await self._transaction(
            ("XADD", self._dead, "MAXLEN", "~", DEAD_LETTERS_KEPT, "*", *fields),
            *finish(stream, self._readers[stream], entry_id),
        )
        log.error("dead letter", extra=letter.model_dump(exclude={"body"}))

    async def _make_groups(self) -> None:
        for stream, group in self._readers.items():
            try:
                await self._redis.xgroup_create(stream, group, id="0", mkstream=True)
            except redis_errors.ResponseError as error:
                if "BUSYGROUP" not in str(error):
                    raise

    # --- below: calls -------------------------------------------------------------------------

    async def _run(self, *command: Any, **parsing: Any) -> Any:
        return await self._call(lambda: self._command(*command, **parsing))

    def _command(self, *command: Any, **parsing: Any) -> Awaitable[Any]:
        reply = self._redis.execute_command(*command, **parsing)  # type: ignore[no-untyped-call]
        return cast(Awaitable[Any], reply)

    async def _transaction(self, *commands: Command) -> list[Any]:
        async def execute() -> list[Any]:
            async with self._redis.pipeline(transaction=True) as transaction:
                for command in commands:
                    transaction.execute_command(*command)
                return await transaction.execute()

        return await self._call(execute)

    async def _call(
        self, command: Callable[[], Awaitable[T]], *, patience_s: float | None = None
    ) -> T:
        """Run a command: wait out an outage, make lost consumer groups again, name the rest."""
        patience_s = self._outage_s if patience_s is None else patience_s
        give_up_at, pause_s = time.monotonic() + patience_s, FIRST_RETRY_S
        while True:
            try:
                return await command()
            except _REFUSED as error:
                raise QueueError(
                    f"{self._where} refuses this password: {error}; set TEMPSAMP_REDIS_PASSWORD"
                ) from error
            except _OUTAGE as error:
                if UNTRUSTED in str(error):
                    raise QueueError(
                        f"{self._where} has a certificate that is not trusted: {error}; wanted one "
                        "of its name, signed by shared.redis_ca or a CA of the system"
                    ) from error
                if time.monotonic() + pause_s > give_up_at:
                    raise QueueError(
                        f"{self._where}: no answer for {patience_s:.0f} s ({error}); "
                        "start it, or correct shared.redis_url"
                    ) from error
                self._log_outage(error)
            except redis_errors.RedisError as error:
                if "NOGROUP" not in str(error):
                    raise QueueError(f"{self._where}: {error}") from error
                await self._call(self._make_groups)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LAST_RETRY_S)

    def _log_outage(self, error: Exception) -> None:
        now = time.monotonic()
        if now - self._outage_logged_at >= LOG_OUTAGE_EVERY_S:
            self._outage_logged_at = now
            log.warning("waiting for redis", extra={"redis": self._where, "error": str(error)})
