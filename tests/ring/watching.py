"""A run watched from outside: every service's /metrics while it trains, and the dashboard on them.

`Watched.until_the_end(ring, learner)` → what was scraped → `assert_shows(steps, validations)`.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self
from urllib.parse import urlsplit

import httpx

from common.config import bearer
from services.learner.metrics import series_of
from tests.fixtures.deploy import monitoring
from tests.ring.conftest import Ring

POLL_S = 0.2
ALIVE_TIMEOUT_S = 300.0


class Learner(Protocol):
    """The process of a test."""

    process: Any

    @property
    def url(self) -> str | None:
        """Of its status."""


@dataclass(frozen=True)
class Watched:
    """The last look at all services at which the learner had finished a step."""

    series: Sequence[monitoring.Labels]
    learner: str
    """Its exposition."""
    empty: Sequence[str]
    """Expressions that a real Prometheus, where there is one, had no answer to."""

    @classmethod
    def until_the_end(cls, ring: Ring, learner: Learner) -> Self:
        """Scrape until the learner's process ends.

        Raises:
            AssertionError: it could not be scraped after a step, or without a token was.
        """
        url = _wait_for_url(learner)
        assert httpx.get(f"{url}/healthz").is_success, "while the model loads"
        assert httpx.get(f"{url}/metrics").status_code == 401
        (replica,) = ring.replicas()
        urls = {
            "learner": url,
            "rollout": replica.url,
            "reward": f"http://127.0.0.1:{ring.reward_port}",
        }
        places = {job: urlsplit(url).netloc for job, url in urls.items()}
        token = ring.environ["TEMPSAMP_TOKEN"]
        with monitoring.prometheus(
            ring.folder / "prometheus", targets=places, token=token
        ) as server:
            texts, at_s = _last_scrapes(learner, urls, token=token)
            series = [
                labels
                for job, text in texts.items()
                for labels in monitoring.series_of(text, job=job, instance=places[job])
            ]
            empty = []
            if server is not None:
                server.wait_until_ready()
                queries = {expression for _, expression, _ in monitoring.expressions()}
                empty = [query for query in queries if not server.query(query, at_s=at_s)]
        return cls(series, texts["learner"], empty)

    def assert_shows(
        self, steps: Sequence[Mapping[str, float]], validations: Sequence[Mapping[str, float]]
    ) -> None:
        """Every panel has figures, every key of a line a series, and both say the same."""
        unanswered = monitoring.unanswered(self.series)
        assert unanswered == [], unanswered
        assert self.empty == [], self.empty
        keys = {key for line in (*steps, *validations) for key in line}
        assert {key for key in keys if series_of(key) is None} == set()
        shown = [
            line for line in steps if f"tempsamp_learner_step {line['step']}.0" in self.learner
        ]
        (line,) = shown
        for key in ("reward/iou", "learner/entropy_nats", "intake/groups_taken"):
            assert _value(self.learner, key) == round(line[key], 6), key


def _wait_for_url(learner: Learner) -> str:
    deadline = time.monotonic() + ALIVE_TIMEOUT_S
    while time.monotonic() < deadline:
        if (url := learner.url) is not None:
            return url
        assert learner.process.poll() is None, "it ended before it listened"
        time.sleep(POLL_S)
    raise AssertionError("the learner did not listen in time")


def _last_scrapes(
    learner: Learner, urls: Mapping[str, str], *, token: str
) -> tuple[dict[str, str], float]:
    """Job → exposition, and when (Unix time)."""
    last: tuple[dict[str, str], float] | None = None
    while learner.process.poll() is None:
        try:
            texts = {
                job: httpx.get(f"{url}/metrics", headers=bearer(token)).raise_for_status().text
                for job, url in urls.items()
            }
        except httpx.TransportError:
            continue  # it has just ended
        if "tempsamp_learner_reward_mean{" in texts["learner"]:
            last = texts, time.time()
        time.sleep(POLL_S)
    assert last is not None, "the learner ended without a step"
    return last


def _value(text: str, key: str) -> float:
    """What an exposition shows of a key of a step line."""
    found = series_of(key)
    assert found is not None
    series, labels = found
    values = [
        sample.value
        for family in monitoring.text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.removesuffix("_total") == series.name and sample.labels == labels
    ]
    assert len(values) == 1, (key, values)
    return round(values[0], 6)
