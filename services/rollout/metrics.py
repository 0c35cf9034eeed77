"""Prometheus figures of a replica, read from its status when scraped."""

from collections.abc import Callable, Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from common.messages import ReplicaStatus


class ReplicaCollector(Collector):
    """Turns a `ReplicaStatus` into metric families."""

    def __init__(
        self, read_status: Callable[[], ReplicaStatus], *, clips: Mapping[str, int]
    ) -> None:
        """`clips`: the live counts of the replica's `ClipLoader`."""
        self._read_status = read_status
        self._clips = clips

    def collect(self) -> Iterator[Metric]:
        """Called at each scrape."""
        status = self._read_status()
        yield CounterMetricFamily(
            "tempsamp_rollout_groups", "Scored groups pushed.", value=status.completed_groups
        )
        yield CounterMetricFamily(
            "tempsamp_rollout_failed_prompts", "Prompts that failed.", value=status.failed_prompts
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
        clips = CounterMetricFamily(
            "tempsamp_rollout_clips",
            "Clips by source (hits, decoded) and cache entries refused (mismatches, corrupt).",
            labels=["kind"],
        )
        for kind, count in self._clips.items():
            clips.add_metric([kind], count)
        yield clips
