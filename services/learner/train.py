"""The learner's main path: setup, then one loop read from top to bottom.

    groups stream -> intake -> advantages -> batch -> step -> publish -> prompts stream

Run by `launch` on any number of ranks (or alone). Rank 0 alone talks to Redis, replicas and the
disk, through its `Desk`; the others follow its small JSON orders, and every collective is entered
by all ranks in the same order.
"""

import contextlib
import functools
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from common.config import Run
from common.errors import QueueError, RewardError, TempSampError
from common.logs import configure
from common.messages import PACKED, ScoredGroup
from common.model.folder import fetched
from common.video.loader import ClipLoader
from services.learner import metrics, parallel
from services.learner.batching.budget import Budget, step_within
from services.learner.desk import Desk
from services.learner.feed import NoRowLeftError
from services.learner.launch import OTHER_RANK_FAILED
from services.learner.model import kernels
from services.learner.model.policy import Policy
from services.learner.model.start import start_policy
from services.learner.objective.diagnostics import diagnostics, search
from services.learner.parallel import Ranks, StopSignal
from services.learner.probe import bounds_of, disagreement, generate_probe, logprob_gap
from services.learner.publishing.publisher import Publisher
from services.learner.share import Share
from services.learner.state.best import is_best
from services.learner.state.checkpoint import Checkpoints, refuse_existing
from services.learner.state.lease import refuse_folders_apart
from services.learner.state.saving import Saving
from services.learner.status import Status, serving
from services.learner.step import Stepper
from services.learner.validation import Validate

logger = logging.getLogger(__name__)

HEARTBEAT_S = 5.0
"""While rank 0 waits, the others hear from it this often, and it of a signal that reached them."""


def train(run: Run, *, resume: bool, validate: Validate | None = None) -> None:
    """Train until `learner.steps`, or until SIGTERM or SIGINT on any rank: that checkpoints.

    Args:
        run: the run's configuration.
        resume: go on from the latest checkpoint of `learner.run_dir`; a fresh run refuses one.
        validate: asks held-out rows; None: no validation.

    Raises:
        TempSampError, ConfigError: what stops a run; messages name the knob. When queues or
            verdicts fail or no row is left, the steps that were done are saved first.
    """
    stop = StopSignal()
    with (
        _watched(run) as status,
        open_learner(run, resume=resume, validate=validate, status=status, stop=stop) as learner,
    ):
        version = learner.first_version
        if stop.agree(learner.ranks):
            return
        learner.publish(version)
        learner.probe(version)
        # Nothing is trained yet: no prompt for engines that disagree, and nothing to save.
        learner.raise_failure()
        learner.top_up(version)
        learner.validate(version)
        while version < run.learner.steps and learner.failure is None:
            learner.saving.finish()
            clock = metrics.Clock()
            groups = learner.next_groups(version)
            if groups is None:
                break
            clock.lap("learner/wait_s")
            figures = learner.step(groups, number=version + 1)
            clock.lap("learner/step_s")
            version += 1
            learner.publish(version)
            learner.top_up(version)
            clock.lap("learner/publish_s")
            learner.validate(version)
            clock.lap("learner/validate_s")
            learner.dump(groups, step=version, figures=figures)
            learner.report(groups, version=version, figures=figures | clock.laps)
            due = run.learner.checkpoint_every and version % run.learner.checkpoint_every == 0
            if due or learner.is_best:
                learner.saving.save(version)
        learner.saving.save(version)
        learner.saving.finish(wait=True)
        learner.raise_failure()


@dataclass
class Learner:
    """The parts of one rank; `desk` is None except on rank 0."""

    run: Run
    ranks: Ranks
    policy: Policy
    stepper: Stepper
    budget: Budget
    share: Share
    saving: Saving
    publisher: Publisher
    desk: Desk | None
    validates: bool
    first_version: int
    stop: StopSignal
    is_best: bool = False
    """Whether this version answered the held-out rows better than any before; on every rank."""
    failure: TempSampError | NoRowLeftError | None = None
    """Why the run ends early: no more groups (rank 0 alone), or engines that disagree."""
    starved: NoRowLeftError | None = None
    """Rank 0: why there are no further prompts. The next step ends the run, on all ranks alike."""
    has_probed: bool = False
    """Whether engine and learner were compared since this process started."""
    last_order_s: float = field(default_factory=time.monotonic)
    offered: Sequence[ScoredGroup] = ()
    """What rank 0 showed last: the groups of the next step, unless any rank objects."""

    def next_groups(self, version: int) -> Sequence[ScoredGroup] | None:
        """The groups of the next step, on every rank; None when the run has to stop.

        While rank 0 waits, replicas that came late or came back get their weights.
        """
        self.stop.agree(self.ranks)
        if self.desk is None:
            order = self._follow()
            if order["do"] == "stop":
                return None
            self.share.prefetch(order["clips"])
            return self.offered
        groups = self._take(self.desk, version)
        if groups is None:
            self._order("stop")
            return None
        ahead = self.desk.ahead(version + 1)
        clips = self.share.clips_of_ranks(ahead, limits=self.budget.limits)
        self._order("train", clips=clips)
        self.share.prefetch(clips)
        return groups

    def _offer(self, groups: Sequence[ScoredGroup]) -> dict[str, str]:
        """Rank 0: what any rank has against these groups, by prompt id; a collective."""
        # A single rank has nobody to tell, and JSON of a step's groups takes a while to write.
        told = self.ranks.world_size > 1
        bodies = [group.model_dump(mode="json", context=PACKED) for group in groups] if told else []
        self._order("look", groups=bodies)
        return self.share.agreed_faults(groups, limits=self.budget.limits)

    def step(self, groups: Sequence[ScoredGroup], *, number: int) -> dict[str, float]:
        """One step on these groups, all its updates; its figures. A collective."""
        figures, self.budget = step_within(
            self.budget,
            run_dir=self.run.learner.run_dir,
            ranks=self.ranks,
            collate=lambda limits: self.share.collate(groups, limits=limits),
            step=functools.partial(self.stepper.step, number=number),
            forget=self.stepper.forget,
        )
        return figures | self.share.clip_figures()

    def publish(self, version: int) -> None:
        """Bring a version to all live replicas, at once or beside the next step; a collective."""
        self.publisher.publish(version, step=version)
        if self.desk is not None:
            self.desk.status.show({"policy_version": version})

    def top_up(self, version: int) -> None:
        """Rank 0: keep the bounded number of prompts in flight; a lone rank decodes their clips.

        Raises:
            NoRowLeftError: every row is unusable, and nothing is trained yet that could be saved.
        """
        if self.desk is None or self.stop.asked:  # who resumes feeds them; clips take their time
            return
        try:
            clips = self.desk.top_up(version)
        except NoRowLeftError as error:
            if version == self.first_version:
                raise
            self.starved = error
            return
        if self.ranks.world_size == 1:
            self.policy.clips.prefetch(clips)

    def validate(self, version: int) -> None:
        """Have the held-out rows answered if this version is due; a collective.

        All the while, replicas that came late or came back get their weights.
        """
        learner = self.run.learner
        due = version == learner.steps or version % learner.validation.every == 0
        self.is_best = False
        if not self.validates or not due:
            return
        if self.desk is None:
            self.is_best = self._follow()["is_best"]
            return
        self.publisher.settle()
        self.desk.validate(version, urls=self.publisher.member_urls, on_idle=self._while_waiting)
        self.is_best = learner.keep_best and is_best(learner.run_dir, version)
        self._order("go on", is_best=self.is_best)

    def report(
        self, groups: Sequence[ScoredGroup], *, version: int, figures: Mapping[str, float]
    ) -> None:
        """Log a step and append it to metrics.jsonl; now and then probe the engines' agreement."""
        gap = self.probe(version)
        if self.desk is None:
            return
        self.desk.trained(groups, step=version, applied=figures["learner/updates"] > 0)
        line = {"step": version, "policy_version": version, **figures, **self.desk.figures()}
        line |= self.saving.figures() | self.publisher.figures
        line |= metrics.group_metrics(groups, version=version - 1)
        advantages = self.share.advantages(groups)
        self.desk.kept.keep(groups, advantages=advantages.by_group, step=version)
        line |= diagnostics(advantages) | search(groups, advantages)
        line |= gap
        self.desk.show(line, step=version)
        logger.info("step", extra=line)

    def dump(
        self, groups: Sequence[ScoredGroup], *, step: int, figures: Mapping[str, float]
    ) -> None:
        """Rank 0: complete what the ranks noted of a step, if its dump is due."""
        if self.desk is not None:
            self.stepper.dumps.finish(
                step,
                groups=groups,
                advantages=self.share.advantages(groups).by_group,
                figures=figures,
                world_size=self.ranks.world_size,
            )

    def raise_failure(self) -> None:
        """What ended the run early, now that its steps are saved; rank 0 says it."""
        if self.failure is not None:
            raise self.failure if self.desk is not None else SystemExit(OTHER_RANK_FAILED)

    def _take(self, desk: Desk, version: int) -> Sequence[ScoredGroup] | None:
        if desk.stops_early(version):
            return None
        if self.starved is not None:
            self._end_without_groups(self.starved)
            return None
        try:
            groups = desk.take(version, on_idle=self._while_waiting, faults_of=self._offer)
        except (QueueError, RewardError, NoRowLeftError) as error:
            self._end_without_groups(error)
            return None
        self.failure = desk.intake.stalled
        return groups

    def _end_without_groups(self, error: TempSampError | NoRowLeftError) -> None:
        logger.warning("no groups: stopping with a checkpoint", extra={"error": str(error)})
        self.failure = error

    def _order(self, what: str, **details: Any) -> None:
        """Rank 0: tell the others what comes next, and hear whether one of them was signalled."""
        self.ranks.broadcast_json({"do": what, **details})
        self.stop.agree(self.ranks)
        self.last_order_s = time.monotonic()

    def _follow(self) -> dict[str, Any]:
        """The other ranks: wait, or look at groups, as often as rank 0 says so; returns its first
        other order."""
        while True:
            order = self.ranks.broadcast_json(None)
            self.stop.agree(self.ranks)
            if order["do"] == "look":
                self.offered = [ScoredGroup.model_validate(group) for group in order["groups"]]
                self.share.agreed_faults(self.offered, limits=self.budget.limits)
            elif order["do"] == "wait":
                self.saving.finish()
            else:
                return dict(order)

    def _while_waiting(self) -> None:
        """Rank 0: what goes on while groups or answers are waited for."""
        self.publisher.welcome()
        if self.ranks.world_size > 1 and time.monotonic() - self.last_order_s < HEARTBEAT_S:
            return
        self._order("wait")
        self.saving.finish()

    def probe(self, version: int) -> dict[str, float]:
        """Compare engine and learner where that is due; a collective.

        The first version is due, and goes on to be while no replica answers. Beyond the bounds
        `failure` says so on all ranks.
        """
        every = self.run.learner.probe_every
        if every == 0 or (self.has_probed and version % every != 0):
            return {}
        group = None
        if self.desk is not None:
            self.publisher.settle()
            urls = [] if self.stop.asked else self.publisher.member_urls()
            if urls and (prompt := self.desk.probe_request()):
                group = generate_probe(prompt, url=urls[0], version=version, shared=self.run.shared)
        body = self.ranks.broadcast_json(group.model_dump(mode="json") if group else None)
        if body is None:
            return {}
        self.has_probed = True
        group = ScoredGroup.model_validate(body)
        max_nats, _ = bounds_of(self.run)
        gap = logprob_gap(self.policy, group, ranks=self.ranks, max_nats=max_nats)
        self.failure = self.failure or disagreement(
            gap, run=self.run, version=version, replica=group.replica
        )
        facts = {"policy_version": version, "num_tokens": gap.num_tokens, **gap.figures}
        logger.info("engine and learner compared", extra=facts)
        return gap.figures


def _watched(run: Run) -> contextlib.AbstractContextManager[Status | None]:
    """Rank 0 answers /healthz while the model loads, however long; the others need no server."""
    return serving(run) if parallel.will_be_main() else contextlib.nullcontext()


@contextlib.contextmanager
def open_learner(
    run: Run,
    *,
    resume: bool,
    validate: Validate | None,
    stop: StopSignal,
    status: Status | None = None,
) -> Iterator[Learner]:
    """Set everything up, restore a checkpoint if asked, and close it all at the end."""
    settings = run.learner
    if not resume and parallel.will_be_main():  # one of them says so
        refuse_existing(settings.run_dir)
    start = fetched(run.shared.model, knob="shared.model").path
    kernels.require_delta_net(start, device=settings.device, settings=settings.kernels)
    torch.manual_seed(run.shared.seed)
    with contextlib.ExitStack() as owned:
        ranks = parallel.start_ranks(
            settings.device,
            timeout_s=settings.collective_timeout_s,
            shard_within=settings.shard_within,
        )
        owned.push(ranks.leave)
        # Not before: a signal would wait for ranks that never come.
        owned.enter_context(stop.installed())
        configure("learner", run_id=run.shared.run_id)
        desk = None
        if ranks.is_main:
            desk = owned.enter_context(Desk(run, stop=stop, validate=validate, status=status))
        # Before a checkpoint is chosen: who has the run may still write one.
        _take_run(desk, ranks=ranks, stop=stop)
        refuse_folders_apart(settings.run_dir, ranks=ranks)
        if not resume:
            refuse_existing(settings.run_dir)
        budget = Budget.of(run, start=start, ranks=ranks)
        loader = ClipLoader.of(run.shared.video)
        policy = start_policy(
            start,
            ranks=ranks,
            compute_dtype=getattr(torch, run.shared.dtype),
            freeze_vision=settings.freeze_vision,
            adapters=settings.lora,
            recomputed=budget.recomputed,
            kernels=settings.kernels,
            load_frames=loader.load,
            memory=settings,
        )
        stepper = Stepper.of(run, policy, start=start, ranks=ranks, load_frames=loader.load)
        checkpoints = Checkpoints(
            run, start=start, policy=policy, optimizer=stepper.optimizer, ranks=ranks
        )
        owned.callback(checkpoints.close)
        state = checkpoints.restore() if resume else None
        if desk is not None:
            checkpoints.tidy()
            desk.begin(state)
        publisher = Publisher(
            policy,
            shared=run.shared,
            learner=settings,
            ranks=ranks,
            replicas=desk.replicas if desk else list,
            run_tag=desk.feed.tag if desk else "",
            epoch=desk.epoch if desk else 1,
            should_stop=lambda: stop.asked,
        )
        owned.callback(publisher.close)
        learner = Learner(
            run=run,
            ranks=ranks,
            policy=policy,
            stepper=stepper,
            budget=budget,
            share=Share(run, ranks, policy),
            saving=Saving(checkpoints, desk=desk, version=state.step if state else None),
            publisher=publisher,
            desk=desk,
            validates=validate is not None,
            first_version=state.step if state else 0,
            stop=stop,
        )
        if desk is not None:
            desk.status.ready(learner.first_version)
        yield learner


def _take_run(desk: Desk | None, *, ranks: Ranks, stop: StopSignal) -> None:
    """Wait until the run is ours; a collective.

    Raises:
        SystemExit: with code 0: asked to stop meanwhile.
    """
    while not ranks.broadcast_json(desk.try_take_run(HEARTBEAT_S) if desk else None):
        if stop.agree(ranks):
            raise SystemExit(0)
