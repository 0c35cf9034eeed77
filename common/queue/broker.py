"""One run's Redis: prompts out, scored groups back, dead letters, registry.

The learner feeds a `PromptRequest`, a replica claims it and pushes a `ScoredGroup`, the learner
reads and acknowledges that. Delivery is at least once: a claim is a lease, a group stays until it
is acknowledged. Keys start with `tempsamp:<run_id>:`, bodies are the JSON of a wire type. While
Redis is away every call waits and retries, within bounds (`connection`); what has to be atomic is a
script (`scripts`). What only a run's learner may change is refused once there is a later one
(`fence`).
"""

import asyncio
import logging
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from common.config import Shared
from common.messages import DeadLetter, PromptRequest, ReplicaStatus, ScoredGroup
from common.queue import scripts
from common.queue.access import connection_options
from common.queue.connection import Connection
from common.queue.fence import Hold, RunFence
from common.queue.stream_entries import (
    ClaimedPrompt,
    Command,
    Depths,
    Fields,
    Limits,
    ServerFacts,
    dead_letter,
    fields_of,
    finish,
    parse,
    to_fields,
)

__all__ = ["Broker", "ClaimedPrompt", "Depths", "Hold", "Limits", "ServerFacts"]

log = logging.getLogger(__name__)

ROLLOUT, LEARNER = "rollout", "learner"
"""Consumer groups of the two streams; the learner is also the only consumer of its group."""
LONGEST_BLOCK_S = 10.0
"""A blocking read comes back after this long at most, well inside the socket timeout."""
DEAD_LETTERS_KEPT = 10_000
FORGET_REPLICA_S = 3600
IDS_A_SCRIPT = 1000
"""Lua takes some 8,000 arguments at once."""
ALONE_AFTER_DEATHS = 2
"""A prompt that so many replicas died over is worked on alone: whatever dies next died of it, and
takes no neighbour with it."""
_NO_LIMITS = Limits()

Mark = Literal["", "lost", "slow", "doubted", "failed"]


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
            connection: user and TLS, as `common.queue.access` gives them; `should_stop` ends the
                wait for an unreachable Redis early.

        Raises:
            ConfigError: the URL is not one.
        """
        prefix = f"tempsamp:{run_id}"
        self._prompts, self._groups = f"{prefix}:prompts", f"{prefix}:groups"
        self._marks, self._claimers = f"{prefix}:marks", f"{prefix}:claimers"
        self._dead, self._replicas = f"{prefix}:dead", f"{prefix}:replicas"
        self._readers = {self._prompts: ROLLOUT, self._groups: LEARNER}
        self._connection = Connection(
            redis_url,
            password=password,
            outage_s=outage_s,
            groups=tuple(self._readers.items()),
            **connection,
        )
        sweeps = (self._claimers, f"{self._claimers}:swept")
        self._kept = (*self._readers, self._marks, *sweeps, self._dead, self._replicas)
        self.fence = RunFence(self._connection, prefix=prefix, kept=self._kept)
        """The right to be this run's learner."""
        self._history_from: str | None = "0-0"

    @classmethod
    def of(cls, shared: Shared, *, should_stop: Callable[[], bool] = lambda: False) -> "Broker":
        """The broker of the run that `[shared]` describes.

        Raises:
            ConfigError: that Redis must not be used like this.
        """
        options = connection_options(shared)
        return cls(shared.redis_url, run_id=shared.run_id, should_stop=should_stop, **options)

    @property
    def num_outages(self) -> int:
        """Outages of Redis that were got over so far: it may have forgotten the latest."""
        return self._connection.num_outages

    async def close(self) -> None:
        """Close all connections."""
        await self._connection.close()

    async def wait_ready(self, timeout_s: float | None = None) -> None:
        """Wait until Redis answers, logging what is waited for; then make the consumer groups.

        Raises:
            QueueError: wrong password (at once), a server older than 6.2, or time is up.
        """
        await self._connection.wait_ready(timeout_s)

    async def describe(self) -> ServerFacts:
        """What Redis says of itself; nothing is made or changed."""
        return await self._connection.describe()

    # --- prompts ------------------------------------------------------------------------------

    async def feed_prompt(self, request: PromptRequest) -> bool:
        """Add a prompt under its sequence number; False if Redis has had that number before.

        Raises:
            RunLostError: a later learner has the run.
        """
        fields = to_fields(request.prompt_id, request)
        # A new run begins at 1 again: without its tag in the id, a replica that still works on 1 of
        # the run before would finish or give back 1 of this one.
        run = zlib.crc32(request.run_tag.encode())
        return await self.fence.add(self._prompts, f"{request.sequence}-{run}", fields)

    async def last_sequence(self) -> int:
        """The highest sequence number that Redis has had; 0 for none."""
        await self._connection.make_groups()  # without them there is no stream to ask about
        found = await self._connection.run("XINFO STREAM", self._prompts)
        last = found["last-generated-id"]
        return int(str(last).split("-")[0])

    async def claim_prompt(
        self, replica: str, *, lease_s: float, block_s: float
    ) -> ClaimedPrompt | None:
        """Lease a prompt: one that was given back, else a new one; None after `block_s`.

        Never one that this replica failed at. A prompt that cannot be read goes to the dead
        letters. None, too, while this replica has a prompt that is to be worked on `alone`.
        `min_version` is the caller's business: a replica that is behind renews the lease while it
        waits for its weights, because what it sampled too early would only be dropped.
        """
        while True:
            found = await self._prompt_script(
                scripts.CLAIM, replica, round(lease_s * 1000), ALONE_AFTER_DEATHS
            )
            if found == "wait":
                await asyncio.sleep(block_s)
                return None
            if found is None:
                entries = await self._read(self._prompts, replica, after=">", block_s=block_s)
                if not entries:
                    return None
                found = (*entries[0], 0, 0)
            entry_id, flat, failures, alone = found
            fields = flat if isinstance(flat, dict) else fields_of(flat)
            request = parse(PromptRequest, fields)
            if isinstance(request, PromptRequest):
                return ClaimedPrompt(request, entry_id, replica, failures + 1, alone=bool(alone))
            letter = dead_letter(fields, error=f"unreadable prompt: {request}", replica=replica)
            await self._bury(letter, stream=self._prompts, entry_id=entry_id)

    async def renew(self, claim: ClaimedPrompt) -> bool:
        """Start the lease anew. False: it had ended and the prompt is another replica's."""
        return bool(await self._prompt_script(scripts.RENEW, claim.replica, claim.entry_id))

    async def release(self, claim: ClaimedPrompt) -> None:
        """Give a prompt back unharmed: claimable at once, by this replica too."""
        await self._give_back(claim, "", limits=_NO_LIMITS)

    async def hand_over(self, claim: ClaimedPrompt) -> None:
        """Let another replica work on it as well: whoever pushes first finishes it."""
        await self._give_back(claim, "slow", limits=_NO_LIMITS)

    async def release_after_crash(
        self, claim: ClaimedPrompt, error: str, *, limits: Limits
    ) -> bool:
        """Give a prompt back whose engine died, as if the process had. True: buried."""
        return await self._give_back(claim, "lost", limits=limits, error=error)

    async def fail_prompt(
        self, claim: ClaimedPrompt, error: str, *, limits: Limits, doubted: bool = False
    ) -> bool:
        """Give a prompt back for another replica to try. True: that was the last try, it is buried.

        `doubted`: the replica may be at fault itself; counts from `confirm_failures` on.
        """
        mark: Mark = "doubted" if doubted else "failed"
        return await self._give_back(claim, mark, limits=limits, error=error)

    async def confirm_failures(self, replica: str, entry_ids: Sequence[str]) -> None:
        """Count doubted failures: the replica has answered a prompt since and is well."""
        if entry_ids:
            await self._prompt_script(scripts.SETTLE, replica, "failed", *entry_ids)

    async def forgive_failures(self, replica: str, entry_ids: Sequence[str]) -> None:
        """Forget doubted failures: the replica was sick, is well now, and may try those again."""
        if entry_ids:
            await self._prompt_script(scripts.SETTLE, replica, "", *entry_ids)

    async def sweep(
        self, replica: str, *, lease_s: float, period_s: float, limits: Limits
    ) -> list[str]:
        """Give back what dead replicas hold and bury what nobody can answer; for all replicas.

        Returns:
            Ids of the prompts that were buried. Within `period_s` of another sweep: none.
        """
        letters = await self._prompt_script(
            *(scripts.SWEEP, replica, round(lease_s * 1000), max(1, round(period_s * 1000))),
            *(limits.max_attempts, limits.max_deaths, FORGET_REPLICA_S * 1000),
        )
        for letter in letters:
            _log_letter(letter)
        return [letter[0] for letter in letters]

    async def push_group(self, claim: ClaimedPrompt, group: ScoredGroup) -> None:
        """Hand a group to the learner and finish its prompt, in one transaction.

        After a lost lease, or a retry over a broken connection, the learner may get two groups of
        one prompt: it keeps the first.
        """
        await self._connection.evaluate(
            *(scripts.PUSH, (self._groups, self._prompts, self._marks), ROLLOUT, claim.entry_id),
            *to_fields(group.prompt_id, group),
        )

    async def unfinished_prompts(self) -> set[str]:
        """Ids of the prompts in the stream, claimed or not."""
        return set(await self._connection.evaluate(scripts.UNFINISHED, (self._prompts,)))

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

    def read_again(self) -> None:
        """Have `read_groups` give once more what is not acknowledged, from the first one on."""
        self._history_from = "0-0"

    async def acknowledge_groups(self, entry_ids: Sequence[str]) -> None:
        """Delete groups for good: a checkpoint holds what they taught.

        Raises:
            RunLostError: a later learner has the run, and may have to train on them.
        """
        for first in range(0, len(entry_ids), IDS_A_SCRIPT):
            some = entry_ids[first : first + IDS_A_SCRIPT]
            await self.fence.run(*finish(self._groups, LEARNER, *some))

    async def read_dead_letters(
        self, *, after: str = "0-0", max_count: int = 100
    ) -> list[tuple[str, DeadLetter]]:
        """Dead letters after entry id `after`, with their entry ids; they stay in the stream.

        What is none is passed over; an empty list means that there are no more.
        """
        while True:
            command = ("XRANGE", self._dead, f"({after}", "+", "COUNT", max_count)
            entries = await self._connection.run(*command)
            read = [(entry_id, parse(DeadLetter, fields)) for entry_id, fields in entries]
            letters = [(entry_id, item) for entry_id, item in read if isinstance(item, DeadLetter)]
            if letters or not entries:
                return letters
            after = entries[-1][0]

    async def report_unusable(self, group: ScoredGroup, reason: str) -> None:
        """Put a group among the dead letters; its entry stays until it is acknowledged.

        Raises:
            RunLostError: a later learner has the run.
        """
        letter = DeadLetter(
            prompt_id=group.prompt_id,
            error=reason,
            attempts=0,
            replica=group.replica,
            body=group.model_dump_json(),
        )
        await self.fence.run(self._to_dead(letter))

    async def depths(self) -> Depths:
        """Queue lengths, for the metrics."""
        prompts, pending, groups, unacknowledged, dead = await self._connection.transaction(
            ("XLEN", self._prompts),
            ("XPENDING", self._prompts, ROLLOUT),
            ("XLEN", self._groups),
            ("XPENDING", self._groups, LEARNER),
            ("XLEN", self._dead),
        )
        returned = sum(
            consumer["pending"]
            for consumer in pending["consumers"]
            if consumer["name"] == scripts.RETURNED
        )
        claimed = pending["pending"] - returned
        return Depths(
            prompts_waiting=prompts - claimed,
            prompts_claimed=claimed,
            groups_unread=groups - unacknowledged["pending"],
            groups_unacknowledged=unacknowledged["pending"],
            dead_letters=dead,
        )

    async def reset_run(self) -> None:
        """Forget all messages of this run, and of no other; replicas and the run lease stay.

        Raises:
            RunLostError: a later learner has the run.
        """
        await self.fence.run(("DEL", self._prompts, self._groups, self._dead, self._marks))
        await self._connection.make_groups()
        self._history_from = "0-0"

    # --- registry -----------------------------------------------------------------------------

    async def announce(self, status: ReplicaStatus, *, ttl_s: float) -> None:
        """Show a replica to the learner for the next `ttl_s`, by Redis' clock."""
        keys = (self._replicas, self._status_key(status.replica), *self._kept)
        await self._connection.evaluate(
            *(scripts.ANNOUNCE, keys),
            *(status.replica, status.model_dump_json(), round(ttl_s * 1000), FORGET_REPLICA_S),
        )

    async def withdraw(self, replica: str) -> None:
        """Take a replica out of the registry."""
        await self._connection.run("DEL", self._status_key(replica), self._trouble_key(replica))

    async def replicas(self) -> list[ReplicaStatus]:
        """Replicas whose announcement has not run out, by name."""
        found = await self._of_all_replicas(self._status_key)
        statuses = [parse(ReplicaStatus, {"body": status}) for status in found.values()]
        return [status for status in statuses if isinstance(status, ReplicaStatus)]

    async def report_trouble(self, replica: str, trouble: str, *, ttl_s: float) -> None:
        """Tell the learner why a replica answers nothing; it is forgotten after `ttl_s`."""
        key = self._trouble_key(replica)
        await self._connection.run("SET", key, trouble, "PX", round(ttl_s * 1000))

    async def troubles(self) -> Mapping[str, str]:
        """What keeps replicas from answering, by name."""
        return await self._of_all_replicas(self._trouble_key)

    # --- below --------------------------------------------------------------------------------

    def _status_key(self, replica: str) -> str:
        return f"{self._replicas}:{replica}"

    def _trouble_key(self, replica: str) -> str:
        return f"{self._replicas}:{replica}:trouble"

    async def _of_all_replicas(self, key_of: Any) -> dict[str, str]:
        names = sorted(await self._connection.run("ZRANGE", self._replicas, 0, -1))
        if not names:
            return {}
        found = await self._connection.run("MGET", *(key_of(name) for name in names))
        return {name: text for name, text in zip(names, found, strict=True) if text}

    async def _prompt_script(self, script: str, *arguments: Any) -> Any:
        keys = (self._prompts, self._marks, self._claimers, self._dead)
        return await self._connection.evaluate(script, keys, *arguments)

    async def _give_back(
        self, claim: ClaimedPrompt, mark: Mark, *, limits: Limits, error: str = ""
    ) -> bool:
        found = await self._prompt_script(
            *(scripts.GIVE_BACK, claim.replica, claim.entry_id, mark, error),
            *(limits.max_attempts, limits.max_deaths),
        )
        if isinstance(found, int):
            return False
        _log_letter(found)
        return True

    async def _read(
        self, stream: str, consumer: str, *, after: str, block_s: float, count: int = 1
    ) -> list[tuple[str, Fields]]:
        block_ms = round(min(block_s, LONGEST_BLOCK_S) * 1000)
        block = ("BLOCK", block_ms) if block_ms else ()
        reply = await self._connection.run(
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
        commands = (self._to_dead(letter), *finish(stream, self._readers[stream], entry_id))
        if stream == self._groups:
            await self.fence.run(*commands)
        else:
            await self._connection.transaction(*commands)
        log.error("dead letter", extra=letter.model_dump(exclude={"body"}))

    def _to_dead(self, letter: DeadLetter) -> Command:
        fields = to_fields(letter.prompt_id, letter)
        return ("XADD", self._dead, "MAXLEN", "~", DEAD_LETTERS_KEPT, "*", *fields)


def _log_letter(letter: Sequence[Any]) -> None:
    """What a script buried."""
    names = ("prompt_id", "error", "attempts", "replica")
    log.error("dead letter", extra=dict(zip(names, letter, strict=True)))
