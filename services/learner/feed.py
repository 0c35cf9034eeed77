"""The source of the ring: dataset rows → `PromptRequest`s, a bounded number in flight.

`rows.py` reads the rows, the broker takes the prompts, `intake.py` says which came back. Everything
that decides the next prompt is in `FeedState`, so a resumed feed goes on as if never stopped: the
same rows in the same order under the same sequence numbers, which Redis refuses to take twice.
"""

import asyncio
import hashlib
import itertools
import logging
import random
import secrets
from collections.abc import Collection, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from common.config import Learner, Shared
from common.errors import ConfigError, VideoError
from common.messages import PromptRequest, Sampling, ScoredGroup
from common.queue.broker import Broker
from common.rows import Row, UnusableRowError
from common.video.loader import ClipLoader
from services.learner.curriculum.lookahead import LookAhead
from services.learner.curriculum.phases import HasPlateaued, Phases, PhaseState, never
from services.learner.curriculum.pool import PoolState, RowPool
from services.learner.rows import GivenUp, GivenUpRows, RejectedRows, Rejection, load_rows

log = logging.getLogger(__name__)

DEAD_LETTER = "dead letter"
"""Why a row is rejected that replicas gave up."""


class NoRowLeftError(ConfigError):
    """Every row turned out unusable since the run began."""


class FeedState(BaseModel):
    """All a feed remembers; saved with every checkpoint."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tag: str
    """Start of this run's prompt ids: leftovers of an earlier run of the same name have another."""
    rows_sha256: str
    epoch: int
    cursor: int
    """Rows of this epoch's order that are done."""
    fed: int = 0
    """Of those, the ones that became prompts: for the ledger, nothing is decided by it."""
    next_sequence: int
    outstanding: tuple[PromptRequest, ...]
    """Fed and not yet trained on, in sequence order."""
    rejected: tuple[Rejection, ...]
    given_up: tuple[GivenUp, ...] = ()
    """Fed and never trained on: each row of each epoch once at most."""
    phase: PhaseState = PhaseState()
    pool: PoolState = PoolState()


class Feed:
    """Feeds prompts and knows which are outstanding. For rank 0's synchronous loop."""

    def __init__(
        self,
        broker: Broker,
        *,
        shared: Shared,
        learner: Learner,
        runner: asyncio.Runner,
        state: FeedState | None = None,
        has_plateaued: HasPlateaued = never,
    ) -> None:
        """Read the rows; start at the first epoch, or where `state` stood.

        Raises:
            ConfigError: no usable row, or the rows are not those of `state`.
        """
        self._broker = broker
        self._shared = shared
        self._learner = learner
        self._runner = runner
        self._clips = LookAhead(ClipLoader.of(shared.video))
        self._outstanding: dict[str, PromptRequest] = {}
        self._next_sequence = 1
        self.was_refused = False
        """Redis had a number already: the prompt is there from before a crash, or Redis is ahead of
        us and it is not; `refill` tells."""
        self._rejected = RejectedRows(learner.run_dir / "rejected_rows.jsonl")
        self._rows = load_rows(
            learner.rows, video_root=shared.video.roots[0], rejected=self._rejected
        )
        self._row_by_id = {row.row_id: row for row in self._rows}
        state = state or FeedState(
            tag=secrets.token_hex(3),
            rows_sha256=_file_digest(learner.rows),
            epoch=0,
            cursor=0,
            next_sequence=1,
            outstanding=(),
            rejected=(),
        )
        self.phases = Phases(shared, learner, state=state.phase, has_plateaued=has_plateaued)
        self.pool = RowPool(learner.pool, self._rows, seed=shared.seed, state=state.pool)
        self._usable = [row for row in self._rows if row.row_id not in self.pool.fixed]
        if not self._usable:
            raise ConfigError(
                f"learner.pool: found none of {len(self._rows)} usable rows in it, wanted one: "
                "widen min_difficulty and max_difficulty"
            )
        self._restore(state)

    @property
    def tag(self) -> str:
        """Random name of this run, kept when it is resumed."""
        return self._tag

    @property
    def outstanding(self) -> Collection[str]:
        """Ids of the prompts that were fed and not yet consumed, in sequence order."""
        return self._outstanding.keys()

    def request(self, prompt_id: str) -> PromptRequest:
        """One that is outstanding."""
        return self._outstanding[prompt_id]

    def row(self, row_id: str) -> Row:
        """A usable row."""
        return self._row_by_id[row_id]

    @property
    def rejected(self) -> tuple[Rejection, ...]:
        """Rows that turned out unusable so far."""
        return self._rejected.all

    @property
    def capacity(self) -> int:
        """Prompts that may be outstanding: more would come back too stale to train on."""
        return (self._learner.max_staleness + 1) * self._learner.groups_per_step

    def state(self) -> FeedState:
        """What a checkpoint keeps."""
        return FeedState(
            tag=self._tag,
            rows_sha256=self._rows_sha256,
            epoch=self._epoch,
            cursor=self._cursor,
            fed=self._num_fed,
            next_sequence=self._next_sequence,
            outstanding=tuple(self._outstanding.values()),
            rejected=self._rejected.all,
            given_up=self._given_up.all,
            phase=self.phases.state,
            pool=self.pool.state,
        )

    def top_up(self, version: int) -> list[PromptRequest]:
        """Feed until `capacity` prompts are outstanding, and look at the files of the next ones.

        Args:
            version: the newest published policy version.

        Returns:
            What was fed.

        Raises:
            NoRowLeftError: every row turned out unusable.
        """
        fed: list[PromptRequest] = []
        self._clips.expect(self._coming(self.capacity - len(self._outstanding)))
        while len(self._outstanding) < self.capacity:
            self.phases.look(version)
            row, epoch = self._next_row(version)
            try:
                request = self._request(row, epoch=epoch, version=version)
            except UnusableRowError as error:
                self._reject(row, error)
                continue
            self._next_sequence += 1
            self._num_fed += 1
            self.phases.fed()
            self._add(request)
            fed.append(request)
        self._clips.expect(self._coming(self._learner.groups_per_step))
        return fed

    def close(self) -> None:
        """Look at no more files."""
        self._clips.close()

    def judge(self, groups: Sequence[ScoredGroup]) -> None:
        """What answers of trained groups came to decides what later epochs ask."""
        for group in groups:
            self.pool.judge(group)

    def consumed(self, prompt_id: str) -> None:
        """The prompt is done with: trained on."""
        del self._outstanding[prompt_id]

    def bury(self, prompt_id: str, *, reason: str, replica: str) -> None:
        """The prompt is a dead letter: given up, and its row asked in no later epoch. Replicas read
        the same file in the same way, and would fail at it again."""
        row_id = self._outstanding[prompt_id].row_id
        self.give_up(prompt_id, reason=reason, replica=replica)
        self._rejected.add(Rejection(row_id=row_id, reason=DEAD_LETTER, detail=reason))

    def give_up(self, prompt_id: str, *, reason: str, replica: str) -> None:
        """The prompt is done with: listed, and its row not asked again in this epoch."""
        request = self._outstanding.pop(prompt_id)
        self._given_up.add(
            GivenUp(
                prompt_id=prompt_id,
                row_id=request.row_id,
                epoch=request.epoch,
                reason=reason,
                replica=replica,
            )
        )

    def sequence_of(self, prompt_id: str) -> int:
        """The number that an outstanding prompt was last asked under."""
        return self._outstanding[prompt_id].sequence

    def refeed(self, prompt_id: str, *, version: int) -> None:
        """Ask an outstanding prompt again, behind all others."""
        self._add(self._renumbered(self._outstanding.pop(prompt_id), version=version))

    def refill(self, present: Collection[str], *, version: int) -> int:
        """Feed again what Redis lost: the outstanding prompts that are not `present`.

        In sequence order, under their old numbers unless Redis has moved beyond those.

        Returns:
            How many were lost.
        """
        lost = [request for key, request in self._outstanding.items() if key not in present]
        for request in lost:
            if not self._runner.run(self._broker.feed_prompt(request)):
                # Redis is ahead of us: we resumed at an older checkpoint than it knows.
                last = self._runner.run(self._broker.last_sequence())
                self._next_sequence = max(self._next_sequence, last + 1)
                self.refeed(request.prompt_id, version=version)
        self.was_refused = False
        if lost:
            log.warning("lost prompts fed again", extra={"num_prompts": len(lost)})
        return len(lost)

    def probe_request(self) -> PromptRequest | None:
        """The first usable row as a prompt outside the ring: it is not fed and counts nowhere.

        None when no row is left, which `top_up` says.
        """
        for row in self._usable:
            if row.row_id in self._rejected:
                continue
            try:
                return self._request(row, epoch=0, version=0)
            except UnusableRowError as error:
                self._reject(row, error)
        return None

    def _restore(self, state: FeedState) -> None:
        found = _file_digest(self._learner.rows)
        if found != state.rows_sha256:
            raise ConfigError(
                f"learner.rows: {self._learner.rows}: found sha256 {found[:12]}, wanted "
                f"{state.rows_sha256[:12]}: it changed since the checkpoint; bring it back or "
                "start a new run"
            )
        self._tag, self._rows_sha256 = state.tag, state.rows_sha256
        self._epoch, self._cursor, self._num_fed = state.epoch, state.cursor, state.fed
        self._next_sequence = state.next_sequence
        self._outstanding = {request.prompt_id: request for request in state.outstanding}
        for rejection in state.rejected:
            self._rejected.add(rejection)
        self._given_up = GivenUpRows(self._learner.run_dir / "given_up_rows.jsonl", state.given_up)
        self._order = self._shuffled()

    def _shuffled(self) -> list[int]:
        """The rows that this epoch asks; what it leaves out moves no other."""
        order = list(range(len(self._rows)))
        random.Random(f"{self._shared.seed}:{self._epoch}").shuffle(order)
        asks, epoch = self.pool.asks, self._epoch
        return [number for number in order if asks(self._rows[number].row_id, epoch=epoch)]

    def _next_row(self, version: int) -> tuple[Row, int]:
        """The next row of this epoch that is not rejected, and its epoch."""
        while True:
            if self._cursor == len(self._order):
                if all(row.row_id in self._rejected for row in self._usable):
                    raise NoRowLeftError(
                        f"learner.rows: {self._learner.rows}: no usable row left; rejected: "
                        f"{self._rejected}"
                    )
                self._epoch, self._cursor, self._num_fed = self._epoch + 1, 0, 0
                self.phases.epoch_ended(version)
                self.pool.begin(self._epoch, mode=self.phases.asked.mode)
                self._order = self._shuffled()
            row = self._rows[self._order[self._cursor]]
            self._cursor += 1
            if row.row_id not in self._rejected:
                return row, self._epoch

    def _coming(self, most: int) -> list[Row]:
        """The next rows of this epoch; those of another were read before."""
        coming = (self._rows[number] for number in self._order[self._cursor :])
        wanted = (row for row in coming if row.row_id not in self._rejected)
        return list(itertools.islice(wanted, max(most, 0)))

    def _request(self, row: Row, *, epoch: int, version: int) -> PromptRequest:
        asked = self.phases.asked
        messages = row.messages(asked.mode)
        try:
            clip = self._clips.clip_of(row)
        except VideoError as error:
            raise UnusableRowError("unreadable video", str(error)) from error
        row.check_against(clip)
        sequence = self._next_sequence
        return PromptRequest(
            prompt_id=f"{self._tag}-{epoch}-{row.row_id}",
            sequence=sequence,
            row_id=row.row_id,
            epoch=epoch,
            mode=asked.mode,
            task=row.task,
            clip=clip,
            messages=messages,
            target=row.target,
            num_samples=asked.num_samples,
            sampling=self._sampling_of(sequence, max_tokens=asked.max_tokens),
            min_version=self._min_version(version),
            grading=asked.grading,
        )

    def _sampling_of(self, sequence: int, *, max_tokens: int) -> Sampling:
        """A fixed seed gives each prompt seeds of its own, one a sample."""
        sampling = self._shared.sampling.model_copy(update={"max_tokens": max_tokens})
        if sampling.seed is None:
            return sampling
        return sampling.model_copy(
            update={"seed": sampling.seed + sequence * self._shared.group_size}
        )

    def _min_version(self, version: int) -> int:
        """Prompts ahead of this one are trained on first, `groups_per_step` a version."""
        trained_at = version + len(self._outstanding) // self._learner.groups_per_step
        return max(0, trained_at - self._learner.max_staleness)

    def _renumbered(self, request: PromptRequest, *, version: int) -> PromptRequest:
        sequence = self._next_sequence
        self._next_sequence += 1
        return request.model_copy(
            update={
                "sequence": sequence,
                "sampling": self._sampling_of(sequence, max_tokens=request.sampling.max_tokens),
                "min_version": self._min_version(version),
            }
        )

    def _add(self, request: PromptRequest) -> None:
        self._outstanding[request.prompt_id] = request
        if not self._runner.run(self._broker.feed_prompt(request)):
            self.was_refused = True

    def _reject(self, row: Row, error: UnusableRowError) -> None:
        self._rejected.add(Rejection(row_id=row.row_id, reason=error.reason, detail=error.detail))


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
