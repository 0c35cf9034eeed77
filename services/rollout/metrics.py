"""What a replica counts, and its Prometheus figures: status and counters, read when scraped."""

import math
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar, get_args

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from common.errors import EngineError, QueueError, RewardError, VideoError
from common.messages import ReplicaPhase, ReplicaStatus, ScoredGroup

Family = TypeVar("Family", CounterMetricFamily, GaugeMetricFamily)

RATE_WINDOW_S = 30.0
STAGES = ("decode", "generate", "score")
FAILURE_KINDS = {
    "video": VideoError,
    "engine": EngineError,
    "reward": RewardError,
    "queue": QueueError,
}


@dataclass
class Counters:
    """What this replica has done; written by its worker, read by the registry and /metrics."""

    completed_groups: int = 0
    failed_prompts: int = 0
    failures_in_a_row: int = 0
    generated_tokens: int = 0
    unscored_answers: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    """Failed prompts by kind: a key of FAILURE_KINDS, or `other`."""
    stage_s: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    """Seconds of pushed groups by stage."""
    last_group_s: float = field(default_factory=time.monotonic)
    """When the last group was pushed, or work began; on the monotonic clock."""

    def pushed(self, group: ScoredGroup) -> None:
        """A group is in the stream."""
        self.completed_groups += 1
        self.failures_in_a_row = 0
        self.unscored_answers += sum(verdict.kind == "unscored" for verdict in group.verdicts)
        self.stage_s["decode"] += group.timings.decode_s
        self.stage_s["generate"] += group.timings.generate_s
        self.stage_s["score"] += group.timings.score_s
        self.last_group_s = time.monotonic()

    def failed(self, error: Exception, *, in_a_row: bool = True) -> None:
        """A prompt failed; not `in_a_row` if it shares its cause with the one before."""
        kinds = (name for name, kind in FAILURE_KINDS.items() if isinstance(error, kind))
        self.failed_prompts += 1
        self.failures_in_a_row += in_a_row
        self.failures[next(kinds, "other")] += 1


class Rate:
    """How fast a total grew over the last while."""

    def __init__(self, window_s: float = RATE_WINDOW_S) -> None:
        self._window_s = window_s
        self._seen: deque[tuple[float, int]] = deque()

    def saw(self, total: int, *, now_s: float | None = None) -> None:
        """The total now, on the monotonic clock."""
        now_s = time.monotonic() if now_s is None else now_s
        self._seen.append((now_s, total))
        while len(self._seen) > 2 and self._seen[1][0] <= now_s - self._window_s:
            self._seen.popleft()

    @property
    def per_s(self) -> float:
        """0 before the total was seen twice."""
        if len(self._seen) < 2:
            return 0.0
        (first_s, first), (last_s, last) = self._seen[0], self._seen[-1]
        return (last - first) / max(last_s - first_s, 1e-9)


class ReplicaCollector(Collector):
    """Turns a `ReplicaStatus` and `Counters` into metric families."""

    def __init__(
        self,
        read_status: Callable[[], ReplicaStatus],
        *,
        counters: Callable[[], Counters | None],
        clips: Mapping[str, int],
    ) -> None:
        """Read nothing yet.

        Args:
            read_status: the replica's registry entry.
            counters: what its worker counts; None before it takes prompts.
            clips: the live counts of the replica's `ClipLoader`.
        """
        self._read_status = read_status
        self._counters = counters
        self._clips = clips

    def collect(self) -> Iterator[Metric]:
        """Called at each scrape."""
        status, counters = self._read_status(), self._counters()
        yield from _of_status(status)
        yield from _of_counters(counters or Counters(last_group_s=math.nan))
        yield _labelled(
            CounterMetricFamily(
                "tempsamp_rollout_clips",
                "Clips by source (hits, decoded) and cache entries refused (mismatches, corrupt).",
                labels=["kind"],
            ),
            self._clips,
        )


def _of_status(status: ReplicaStatus) -> Iterator[Metric]:
    yield CounterMetricFamily(
        "tempsamp_rollout_groups", "Scored groups pushed.", value=status.completed_groups
    )
    yield CounterMetricFamily(
        "tempsamp_rollout_tokens", "Tokens generated.", value=status.generated_tokens
    )
    yield GaugeMetricFamily(
        "tempsamp_rollout_policy_version",
        "Verified policy version that is served; -1 before the first.",
        value=-1 if status.version is None else status.version,
    )
    yield GaugeMetricFamily(
        "tempsamp_rollout_weight_generation",
        "Weight group this replica is in; 0 for none.",
        value=status.generation or 0,
    )
    yield GaugeMetricFamily(
        "tempsamp_rollout_pause_seconds",
        "Time that generation stood still for the version that is served; NaN before the first.",
        value=math.nan if status.pause_ms is None else status.pause_ms / 1000,
    )
    yield _labelled(
        GaugeMetricFamily(
            "tempsamp_rollout_phase", "1 for the phase the replica is in.", labels=["phase"]
        ),
        {phase: int(phase == status.phase) for phase in get_args(ReplicaPhase)},
    )
    yield _labelled(
        GaugeMetricFamily(
            "tempsamp_rollout_replica",
            "Always 1; the name that logs and groups give this replica.",
            labels=["replica"],
        ),
        {status.replica: 1},
    )


def _of_counters(counters: Counters) -> Iterator[Metric]:
    yield _labelled(
        CounterMetricFamily(
            "tempsamp_rollout_failed_prompts",
            "Prompts that failed, by what failed them.",
            labels=["kind"],
        ),
        {kind: counters.failures[kind] for kind in (*FAILURE_KINDS, "other")},
    )
    yield CounterMetricFamily(
        "tempsamp_rollout_unscored_answers",
        "Answers pushed without a verdict.",
        value=counters.unscored_answers,
    )
    yield _labelled(
        CounterMetricFamily(
            "tempsamp_rollout_stage_seconds",
            "Time of pushed groups in each stage; prompts in work overlap.",
            labels=["stage"],
        ),
        {stage: counters.stage_s[stage] for stage in STAGES},
    )
    yield GaugeMetricFamily(
        "tempsamp_rollout_last_group_age_seconds",
        "Time since the last group was pushed, or since work began; NaN before.",
        value=time.monotonic() - counters.last_group_s,
    )


def _labelled(family: Family, samples: Mapping[str, float]) -> Family:
    for label, value in samples.items():
        family.add_metric([label], value)
    return family
