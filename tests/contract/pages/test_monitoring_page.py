"""docs/monitoring.md says of panels and metrics what the dashboard and the services say."""

import re
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from services.learner.metrics import SERIES
from services.learner.status import Status, StatusCollector
from services.reward.metrics import Metrics
from services.rollout.metrics import ReplicaCollector
from tests.fixtures import wire
from tests.fixtures.deploy.monitoring import dashboard
from tests.fixtures.pages.documents import ROOT, blocks

PAGE = "docs/monitoring.md"
KEYS = [
    *("reward/iou", "reward/injected_iou", "val/r1_at_0.5", "queue/prompts_waiting"),
    *("rollout/answer_tokens_mean", "rollout/score_s_mean", "intake/staleness_steps_max"),
    *("intake/groups_stale", "learner/importance_weight_max", "learner/logprob_gap_max_nats"),
    *("advantage/mean_group", "advantage/injected_abs_max"),
    *("batch/useful_fraction", "clips/pixels_hit_fraction"),
]
"""One of each series that has labels."""


def learner() -> bytes:
    """An exposition with every family in it."""
    status, registry = Status(), CollectorRegistry()
    status.stepped(dict.fromkeys([*KEYS, *(s.key for s in SERIES if not s.label_names)], 1.0))
    registry.register(StatusCollector(status))
    return generate_latest(registry)


def rollout() -> bytes:
    """The same of a replica."""
    registry = CollectorRegistry()
    replica = wire.replica_status("node")
    clips = {"hits": 1}
    registry.register(ReplicaCollector(lambda: replica, counters=lambda: None, clips=clips))
    return generate_latest(registry)


def reward() -> bytes:
    """The same of the reward service."""
    metrics = Metrics()
    metrics.count_verdicts("task", [{"kind": "scored", "parsed": None}])
    metrics.count_injection("task", injected=True)
    metrics.observe_request("/v1/score", 200, 0.1)
    return metrics.exposition()


def metric_rows() -> Iterator[str]:
    """The page's table of metrics, from what the services answer."""
    for exposition in (learner(), rollout(), reward()):
        for family in text_string_to_metric_families(exposition.decode()):
            if family.name.endswith("_created"):  # the client's own, beside each counter
                continue
            assert family.samples, f"{family.name}: KEYS lacks one of its keys"
            name = family.name + ("_total" if family.type == "counter" else "")
            labels = {label for sample in family.samples for label in sample.labels} - {"le"}
            shown = ", ".join(f"`{label}`" for label in sorted(labels))
            yield f"| `{name}` | {family.type} | {shown} | {family.documentation} |"


def panel_rows() -> Iterator[str]:
    """The page's tables of panels: the dashboard's rows as headings, descriptions as they are."""
    for panel in dashboard()["panels"]:
        if panel["type"] == "row":
            yield f"### {panel['title']}"
        else:
            yield f"| {panel['title']} | {panel['description']} |"


def page() -> list[str]:
    """Its lines."""
    return (ROOT / PAGE).read_text(encoding="utf-8").splitlines()


def test_the_page_lists_every_metric_and_no_other() -> None:
    assert [line for line in page() if line.startswith("| `tempsamp_")] == list(metric_rows())


def test_the_page_explains_every_panel() -> None:
    wanted = list(panel_rows())
    written = [line for line in page() if line in set(wanted)]
    assert written == wanted


def test_the_page_switches_on_the_profile_that_there_is() -> None:
    example = (ROOT / ".env.example").read_text(encoding="utf-8")
    compose = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    (block,) = [b for b in blocks() if b.page == PAGE and "docker" in b.text]
    ups = [words for words in block.commands if words[:2] == ["docker", "compose"]]
    assert ups
    for words in ups:
        assert words[2:5] == ["--profile", "monitoring", "up"]
        assert "profiles: [monitoring]" in compose
    knobs = set(re.findall(r"TEMPSAMP_\w+", "\n".join(page())))
    assert {knob for knob in knobs if knob not in example} == set()
