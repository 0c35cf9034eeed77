"""Prometheus metrics of the reward service; one worker or several.

Several uvicorn workers share counters through files in a folder that the server names in
`PROMETHEUS_MULTIPROC_DIR` before they start (prometheus_client reads it on import).
"""

from collections import Counter as Tally
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from services.reward.registry import VerdictJson

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """Counters of one app.

    Args:
        shared_dir: folder in which all workers keep their counts; None with a single worker.
    """

    def __init__(self, shared_dir: str | None = None) -> None:
        self._shared_dir = shared_dir
        self._registry = CollectorRegistry()
        self._responses = Counter(
            "tempsamp_reward_responses",
            "Responses scored, by task and outcome (scored, error, timeout, unavailable).",
            ("task", "outcome"),
            registry=self._registry,
        )
        self._unread = Counter(
            "tempsamp_reward_unread",
            "Responses scored in which no answer could be read, by task; all those of a task that "
            "returns no `parsed`.",
            ("task",),
            registry=self._registry,
        )
        self._injections = Counter(
            "tempsamp_reward_injections",
            "Injected answers asked for, by task and whether there was one.",
            ("task", "injected"),
            registry=self._registry,
        )
        self._seconds = Histogram(
            "tempsamp_reward_request_seconds",
            "Time from the end of the body to the response.",
            ("route", "status"),
            buckets=SECONDS,
            registry=self._registry,
        )

    def count_verdicts(self, task: str, verdicts: Iterable[VerdictJson]) -> None:
        """Count the verdicts of one item."""
        tally = Tally(map(_outcome, verdicts))
        # Also where it is 0: a rate needs the series before the first unread answer.
        self._unread.labels(task).inc(tally["unread"])
        tally["scored"] += tally.pop("unread", 0)
        for outcome, count in tally.items():
            self._responses.labels(task, outcome).inc(count)

    def count_injection(self, task: str, *, injected: bool) -> None:
        """Count one injected answer, or one that could not be."""
        self._injections.labels(task, str(injected).lower()).inc()

    def observe_request(self, route: str, status: int, seconds: float) -> None:
        """Record one request."""
        self._seconds.labels(route, str(status)).observe(seconds)

    def exposition(self) -> bytes:
        """All metrics in Prometheus' text format, over all workers."""
        if self._shared_dir is None:
            return generate_latest(self._registry)
        shared = CollectorRegistry()
        MultiProcessCollector(shared, self._shared_dir)  # type: ignore[no-untyped-call]
        return generate_latest(shared)


def _outcome(verdict: VerdictJson) -> str:
    if verdict["kind"] == "scored":
        return "unread" if verdict.get("parsed", {}) is None else "scored"
    return str(verdict["reason"]).partition(":")[0]
