"""Rank 0's face to who watches a run: GET /metrics, /v1/status and probes, from a thread.

`train` reports each step line, `desk` queues and replicas; `metrics.SERIES` says as what they are
shown. Training never waits for a scrape: both sides hold a lock for as long as it takes to copy
some sixty numbers, and the server's failure is logged and goes no further. FastAPI is imported
by rank 0 alone.
"""

import contextlib
import logging
import math
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from common.config import Run
from common.logs import LAST_PROBLEM
from common.messages import ReplicaPhase, ReplicaStatus
from common.rest.fleet_api import LearnerReport, Machine, problem_of
from common.secrets import Tokens
from services.learner.metrics import SERIES, series_of

if TYPE_CHECKING:
    from fastapi import FastAPI

logger = logging.getLogger(__name__)

Phase = Literal["loading", "training", "stopping"]
Labels = tuple[tuple[str, str], ...]

WAIT = "tempsamp_learner_wait_seconds"
LAPS = (
    WAIT,
    "tempsamp_learner_step_seconds",
    "tempsamp_learner_publish_seconds",
    "tempsamp_learner_validate_seconds",
    "tempsamp_learner_checkpoint_stall_seconds",
)
"""What `train` measures one after the other; together the wall time of a step."""
MAX_CONNECTIONS = 64
"""Prometheus, probes, and people who watch."""
STOP_S = 5.0
"""How long the end of a learner waits for its server thread, which is a daemon."""


class Status:
    """What a learner shows of itself; written by the training thread, read by the server's."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._phase: Phase = "loading"
        self._values: dict[str, dict[Labels, float]] = {series.name: {} for series in SERIES}
        for series in SERIES:
            if series.kind == "sum":
                self._values[series.name][()] = 0.0
        self._replicas: Counter[ReplicaPhase] = Counter()
        self._waiting_since_s: float | None = None
        self._waited_s = 0.0
        """Waited for the step at work, which no line has reported yet."""
        self._last_step_s = math.nan
        self._num_steps = 0

    @property
    def phase(self) -> Phase:
        """`loading` until the model, Redis and the run are there; `stopping` at the very end."""
        return self._phase

    def ready(self, version: int) -> None:
        """The run is open at a version."""
        self.show({"step": version, "policy_version": version})
        with self._lock:
            self._phase, self._last_step_s = "training", time.monotonic()

    def stopping(self) -> None:
        """The learner ends."""
        self._phase = "stopping"

    def show(self, figures: Mapping[str, float]) -> None:
        """Some keys of a step or validation line; those of `SERIES`, the others are not shown."""
        with self._lock:
            self._take(figures)

    def stepped(self, line: Mapping[str, float]) -> None:
        """A whole step line."""
        with self._lock:
            self._take(line)
            self._num_steps += 1
            self._waited_s, self._last_step_s = 0.0, time.monotonic()

    def saw(self, replicas: Sequence[ReplicaStatus]) -> None:
        """The registry, as it was just read."""
        with self._lock:
            self._replicas = Counter(replica.phase for replica in replicas)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Groups are waited for inside: seconds are shown at once, or a learner that waits for
        ever would look like one that never waits."""
        with self._lock:
            self._waiting_since_s = time.monotonic()
        try:
            yield
        finally:
            with self._lock:
                self._waited_s += time.monotonic() - self._waiting_since_s
                self._waiting_since_s = None

    def families(self) -> list[Metric]:
        """Everything as Prometheus' metric families."""
        with self._lock:
            values = {name: dict(samples) for name, samples in self._values.items()}
            replicas, waited_s, now = Counter(self._replicas), self._waited_s, time.monotonic()
            if self._waiting_since_s is not None:
                waited_s += now - self._waiting_since_s
            last_step_s = self._last_step_s
        values[WAIT][()] += waited_s
        wall_s = sum(values[name][()] for name in LAPS)
        return [
            *_of_lines(values),
            CounterMetricFamily(
                "tempsamp_learner_step_wall_seconds",
                "Time of all parts of steps: waiting, step, publishing, validating, saving.",
                value=wall_s,
            ),
            GaugeMetricFamily(
                "tempsamp_learner_last_step_age_seconds",
                "Time since the last step, or since the run was opened; NaN while loading.",
                value=now - last_step_s,
            ),
            _replicas(replicas),
            GaugeMetricFamily(
                "tempsamp_learner_ready",
                "1 once model and Redis are there, 0 while loading.",
                value=float(self._phase == "training"),
            ),
        ]

    def report(self) -> LearnerReport:
        """What `tempsamp status` shows."""
        with self._lock:
            step = self._value("tempsamp_learner_step")
            wall_s = sum(self._values[name].get((), 0.0) for name in LAPS)
            steps = self._num_steps
            age_s = time.monotonic() - self._last_step_s
            version = self._value("tempsamp_learner_policy_version")
            return LearnerReport(
                phase=self._phase,
                step=None if step is None else int(step),
                version=None if version is None else int(version),
                staleness_steps_mean=self._value(
                    "tempsamp_learner_staleness_steps", ("over", "mean")
                ),
                step_s=wall_s / steps if steps else None,
                last_step_age_s=None if math.isnan(age_s) else age_s,
                last_problem=problem_of(LAST_PROBLEM),
                machine=Machine(),
            )

    def _value(self, name: str, *labels: tuple[str, str]) -> float | None:
        return self._values[name].get(labels)

    def _take(self, figures: Mapping[str, float]) -> None:
        for key, value in figures.items():
            found = series_of(key)
            if found is None:
                continue
            series, labels = found
            samples, at = self._values[series.name], tuple(sorted(labels.items()))
            samples[at] = value + (samples.get(at, 0.0) if series.kind == "sum" else 0.0)


class StatusCollector(Collector):
    """A status, read when scraped."""

    def __init__(self, status: Status) -> None:
        self._status = status

    def collect(self) -> list[Metric]:
        """Called at each scrape."""
        return self._status.families()


def _of_lines(values: Mapping[str, Mapping[Labels, float]]) -> Iterator[Metric]:
    """Families in the order of `SERIES`; one without a figure yet has its name and help alone."""
    shown = set()
    for series in SERIES:
        if series.name in shown:
            continue
        shown.add(series.name)
        make = GaugeMetricFamily if series.kind == "gauge" else CounterMetricFamily
        samples = values[series.name]
        family = make(series.name, series.help, labels=series.label_names)
        for labels, value in samples.items():
            family.add_metric([text for _, text in labels], value)
        yield family


def _replicas(counts: Mapping[ReplicaPhase, int]) -> Metric:
    family = GaugeMetricFamily(
        "tempsamp_learner_replicas", "Live replicas in the registry, by phase.", labels=["phase"]
    )
    for phase in get_args(ReplicaPhase):
        family.add_metric([phase], counts.get(phase, 0))
    return family


@contextlib.contextmanager
def serving(run: Run) -> Iterator[Status]:
    """A status that is served until the end, whatever that is. For rank 0.

    Raises:
        ConfigError: the port is taken, or would be open to anybody; names the knob.
    """
    from common.rest.auth import refuse_open_port
    from common.rest.connections import Connections
    from common.rest.serving import Server, configured, listen, url_of

    settings, tokens = run.learner, run.shared.tokens
    refuse_open_port(
        settings.metrics_host,
        tokens=tokens,
        allow_remote=settings.allow_remote,
        section="learner",
        knob="metrics_host",
    )
    status = Status()
    listening = listen(
        settings.metrics_host,
        settings.metrics_port,
        knobs=("learner.metrics_host", "learner.metrics_port"),
    )
    with listening:
        logger.info("listening", extra={"url": url_of(listening, settings.metrics_host)})
        config = configured(
            create_app(status, tokens=tokens),
            connections=Connections(MAX_CONNECTIONS),
            drain_s=1,
            lifespan="off",
        )
        server = Server(config, end_s=STOP_S)
        thread = threading.Thread(target=_serve, args=(server, listening), daemon=True)
        # Off the main thread uvicorn leaves signals alone: SIGTERM stays the desk's.
        thread.start()
        try:
            yield status
        finally:
            status.stopping()
            server.should_exit = True
            thread.join(STOP_S)


def create_app(status: Status, *, tokens: Tokens) -> "FastAPI":
    """The ASGI app; /metrics wants a token, of any role, where there is one."""
    from fastapi import FastAPI, Response

    from common.rest.auth import BearerAuth
    from common.rest.problems import Problem, install_problem_handlers

    app = FastAPI(title="TempSamp learner", version="1", docs_url=None, openapi_url=None)
    install_problem_handlers(app)
    if tokens.known():
        app.add_middleware(BearerAuth, tokens=tokens)
    registry = CollectorRegistry()
    registry.register(StatusCollector(status))

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """The process answers."""
        return {"status": "ok"}

    @app.get("/readyz")
    async def readyz() -> dict[str, str]:
        """The run is open; 503 before and after."""
        if status.phase != "training":
            raise Problem(503, f"the learner is {status.phase}")
        return {"status": status.phase}

    @app.get("/v1/status")
    async def report() -> LearnerReport:
        """How it is doing, for people."""
        return status.report()

    @app.get("/metrics")
    async def metrics() -> Response:
        """Prometheus text."""
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return app


def _serve(server: Any, listening: socket.socket) -> None:
    try:
        server.run(sockets=[listening])
    except Exception:  # a run goes on without its figures
        logger.exception("the status server failed; /metrics and /healthz are gone")
