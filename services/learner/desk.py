"""Rank 0's desk: everything of a run that only one rank may touch.

Redis is driven from the learner's synchronous loop through one asyncio runner; feed and intake sit
on it. The desk also holds the run (`state/lease.py`), and says what is waited for.
"""

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from common import config
from common.config import Run
from common.errors import ConfigError, QueueError
from common.logs import SAY_EVERY_S, NowAndThen
from common.messages import ClipRef, PromptRequest, ReplicaStatus, ScoredGroup
from common.queue.broker import Broker
from common.queue.ledger import FILE, Fate
from common.rest.address import refuse_foreign, warn_of_loopback
from services.learner import metrics
from services.learner.curriculum.plateau import Plateau
from services.learner.feed import Feed
from services.learner.intake import Intake
from services.learner.parallel import StopSignal
from services.learner.state import durable
from services.learner.state.checkpoint import RunState
from services.learner.state.lease import RunLease
from services.learner.state.ledger import Ledger
from services.learner.status import Status
from services.learner.validation import Validate, Validator
from services.learner.watching.boards import Boards, refuse_missing
from services.learner.watching.groups import KeptGroups

logger = logging.getLogger(__name__)

TRY_EVERY_S = 0.5
SHOW_EVERY_S = 5.0
"""Between two looks at the queues while nothing else happens; Prometheus asks every 15 s."""


class Desk:
    """A context manager: entered with the run folder ours, left with the run given up.

    Inside it the run is taken (`try_take_run`), then begun or gone on with (`begin`).
    """

    def __init__(
        self,
        run: Run,
        *,
        stop: StopSignal,
        validate: Validate | None = None,
        status: Status | None = None,
    ) -> None:
        self._run = run
        self.status = status or Status()
        """What who watches the run sees of it."""
        self._shows, self._speaks = NowAndThen(SHOW_EVERY_S), _in_a_while()
        self._boards = Boards({})
        self._validating = 0
        """The version."""
        self._step = 0
        """That is waited for."""
        self._owned = contextlib.ExitStack()
        self._runner = asyncio.Runner()
        self._broker = Broker.of(run.shared, should_stop=lambda: stop.asked)
        self._lease = RunLease(run, broker=self._broker, runner=self._runner)
        self._replicas: list[ReplicaStatus] = []
        self._stop = stop
        self._validate = validate

    def __enter__(self) -> Self:
        self._lease.lock()
        # Before Redis is waited for: a wrong path or address is said at once.
        _refuse_unreadable(self._run.learner.rows)
        refuse_foreign(self._run.learner.host, knob="learner.host")
        warn_of_loopback(self._run.learner.host, knob="learner.host")
        refuse_missing(self._run)
        return self

    def try_take_run(self, patience_s: float) -> bool:
        """Wait for Redis, and so long for a learner that still has the run; says so in the log."""
        end = time.monotonic() + patience_s
        try:
            self._runner.run(self._broker.wait_ready())
            while not (hold := self._lease.try_take()).epoch:
                self._say("waiting for the run: another learner has it", **hold.facts())
                if self._stop.asked or time.monotonic() > end:
                    return False
                time.sleep(TRY_EVERY_S)
        except QueueError:
            if not self._stop.asked:
                raise
            return False
        logger.info("the run is ours", extra={"epoch": self.epoch})
        return True

    def begin(self, state: RunState | None) -> None:
        """Start at the first row, or where `state` stood.

        Raises:
            ConfigError: no usable row, or the rows are not those of `state`.
        """
        shared, learner = self._run.shared, self._run.learner
        self._plateau = Plateau(learner.run_dir / "validation.jsonl", learner.early_stop)
        self.feed = Feed(
            self._broker,
            shared=shared,
            learner=learner,
            runner=self._runner,
            state=state.feed if state else None,
            has_plateaued=self._plateau.reached,
        )
        self._owned.callback(self.feed.close)
        self.intake = Intake(
            self._broker,
            feed=self.feed,
            runner=self._runner,
            settings=learner,
            state=state.intake if state else None,
            record=self._record,
        )
        self._ledger = Ledger(learner.run_dir / FILE, size=state.ledger_bytes if state else 0)
        if state is None:
            self._runner.run(self._broker.reset_run())
            self._ledger.begin(run_id=shared.run_id, rows=learner.rows, feed=self.feed.state())
            self._ledger.left_out(None, self.feed.pool.fixed)
        self._boards = Boards.of(
            self._run, tag=self.feed.tag, resumed_at=state.step if state else None
        )
        metrics.keep_until(self.metrics_path, step=state.step if state else 0)
        durable.replace_text(learner.run_dir / "config.json", config.dump(self._run))
        self.kept = KeptGroups(
            self._run, row_of=self.feed.row, resumed_at=state.step if state else None
        )
        if self._validate is not None:
            self._validator = Validator(
                self._validate,
                run_dir=learner.run_dir,
                resumed_at=state.step if state else None,
                show=self._show_validation,
            )

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._owned.close()
        self._boards.close()
        self._lease.close()
        self._runner.run(self._broker.close())
        self._runner.close()

    @property
    def epoch(self) -> int:
        """Of this learner: higher than that of any before it, and what Redis fences by."""
        return self._lease.epoch

    def confirm(self) -> None:
        """Go on only if the run is still ours.

        Raises:
            RunLostError: another learner has taken it.
        """
        self._lease.confirm()

    @property
    def metrics_path(self) -> Path:
        """One JSON object a step."""
        return self._run.learner.run_dir / "metrics.jsonl"

    def take(
        self,
        version: int,
        *,
        on_idle: Callable[[], None],
        faults_of: Callable[[Sequence[ScoredGroup]], Mapping[str, str]],
    ) -> Sequence[ScoredGroup] | None:
        """The groups of the next step; None when asked to stop, or `intake.stalled` says why.

        Raises:
            NoRowLeftError: dead letters have used up the last row.
        """

        def idle() -> None:
            self._say_groups()
            self._show_queues()
            on_idle()

        self.confirm()
        self._speaks, self._step = _in_a_while(), version + 1
        with self.status.waiting():
            try:
                self._show_queues()
                groups = self.intake.take(
                    self._run.learner.groups_per_step,
                    at=version,
                    on_idle=idle,
                    should_stop=lambda: self._stop.asked,
                    faults_of=faults_of,
                )
            except QueueError:
                if not self._stop.asked:
                    raise
                return None
        return groups or None

    def validate(
        self, version: int, *, urls: Callable[[], Sequence[str]], on_idle: Callable[[], None]
    ) -> None:
        """Have the held-out rows answered; a signal ends it early."""

        def idle() -> None:
            self._say("waiting for the answers to held-out rows", policy_version=version)
            on_idle()

        self._speaks, self._validating = _in_a_while(), version
        self._validator.run(version, urls=urls, on_idle=idle, should_stop=lambda: self._stop.asked)

    def stops_early(self, version: int) -> bool:
        """Whether validations up to `version` stopped to improve in the last phase."""
        phases = self.feed.phases
        found = phases.is_last and self._plateau.stops(
            since=phases.state.since_version, before=version + 1
        )
        if found:
            patience = self._run.learner.early_stop.patience
            logger.info("early stop", extra={"policy_version": version, "patience": patience})
        return found

    def top_up(self, version: int) -> list[ClipRef]:
        """Feed prompts until the bound on outstanding ones is reached; returns their clips.

        Without Redis they stay outstanding: whoever next waits for groups feeds them again, or ends
        the run with a checkpoint.

        Raises:
            NoRowLeftError: every row turned out unusable.
        """
        try:
            return [request.clip for request in self.feed.top_up(version)]
        except QueueError as error:
            logger.warning("prompts not fed", extra={"error": str(error)})
            return []

    def ahead(self, version: int) -> list[ScoredGroup]:
        """The groups of the step after the next, if they are there already."""
        try:
            return self.intake.ahead(self._run.learner.groups_per_step, at=version)
        except QueueError as error:
            logger.warning("no groups read ahead", extra={"error": str(error)})
            return []

    def acknowledge(self, contained: Sequence[str]) -> None:
        """Delete from Redis what a checkpoint contains; what stays is dropped on resume."""
        try:
            self.intake.acknowledge(contained)
        except QueueError as error:
            logger.warning("groups not acknowledged", extra={"error": str(error)})

    def trained(self, groups: Sequence[ScoredGroup], *, step: int, applied: bool) -> None:
        """Enter a step into the ledger; `applied`: the weights have changed."""
        self.feed.judge(groups)
        self._ledger.rejected(self.feed.rejected)
        self._ledger.step(groups, step=step, learner_epoch=self.epoch, applied=applied)

    def show(self, line: Mapping[str, float], *, step: int) -> None:
        """A step's line: to the file that the run goes back to, then to who watches."""
        metrics.append(self.metrics_path, line)
        self.status.stepped(line)
        self._boards.show(line, step=step)

    def _show_validation(self, figures: Mapping[str, float]) -> None:
        self.status.show(figures)
        self._boards.show(figures, step=self._validating)

    def state(self, step: int, *, rng: str) -> RunState:
        """What a checkpoint keeps of this desk; the ledger is sealed with it."""
        feed = self.feed.state()
        return RunState(
            step=step,
            feed=feed,
            intake=self.intake.state(),
            ledger_bytes=self._ledger.seal(step, feed),
            rng=rng,
        )

    def probe_request(self) -> PromptRequest | None:
        """A prompt outside the ring; None when no row is left."""
        return self.feed.probe_request()

    def replicas(self) -> list[ReplicaStatus]:
        """The registry; as it was last seen while Redis is away.

        Raises:
            RunLostError: another learner has the run, and is who may publish to them.
        """
        self.confirm()
        try:
            self._replicas = self._runner.run(self._broker.replicas())
        except QueueError as error:
            logger.warning("registry not read", extra={"error": str(error)})
        self.status.saw(self._replicas)
        return self._replicas

    def figures(self) -> dict[str, float]:
        """Queue depths, unless Redis is away, and what became of the groups so far."""
        counters = self.intake.counters.model_dump()
        counted = {f"intake/{name}": float(count) for name, count in counters.items()}
        counted["learner/phase"] = float(self.feed.phases.state.index + 1)
        try:
            depths = self._runner.run(self._broker.depths())
        except QueueError as error:
            logger.warning("queues not read", extra={"error": str(error)})
            return counted
        return {
            "queue/prompts_waiting": depths.prompts_waiting,
            "queue/prompts_claimed": depths.prompts_claimed,
            "queue/groups_unread": depths.groups_unread,
            "queue/dead_letters": depths.dead_letters,
            **counted,
        }

    def _record(self, fate: Fate, prompt_id: str, reason: str) -> None:
        self._ledger.fate(fate, self.feed.request(prompt_id), reason=reason, step=self._step)

    def _show_queues(self) -> None:
        if self._shows.is_due():
            self.status.show(self.figures())

    def _say_groups(self) -> None:
        """What a step waits for, from both sides."""
        if not self._speaks.is_due():
            return
        phases = Counter(replica.phase for replica in self.replicas())
        facts = {
            "found": self.intake.num_taken,
            "wanted": self._run.learner.groups_per_step,
            "outstanding_prompts": len(self.feed.outstanding),
            "replicas": ", ".join(f"{count} {phase}" for phase, count in phases.items()) or "none",
        }
        logger.info("waiting for groups", extra=facts)

    def _say(self, event: str, **facts: object) -> None:
        """Now and then."""
        if self._speaks.is_due():
            logger.info(event, extra=facts)


def _in_a_while() -> NowAndThen:
    """The first word of a wait comes late: most end before."""
    return NowAndThen(first_s=SAY_EVERY_S)


def _refuse_unreadable(rows: Path) -> None:
    try:
        rows.open("rb").close()
    except OSError as error:
        raise ConfigError(f"learner.rows: {rows}: {error.strerror or error}") from error
