"""deploy/monitoring, read without an engine: scraped services, provisioning, the dashboard."""

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from common.config import Learner, Reward, Rollout, Run
from common.secrets import TOKEN
from services.learner.metrics import SERIES
from tests.fixtures.deploy.monitoring import (
    MONITORING,
    ROOT,
    dashboard,
    expressions,
    panels,
    selectors,
    series_of,
    unanswered,
)

PORTS = {
    "reward": Reward.model_fields["port"].default,
    "rollout": Rollout.model_fields["port"].default,
    "learner": Learner.model_fields["metrics_port"].default,
}
UNITS = {"none", "s", "percentunit", "bytes"}
KNOB = re.compile(r"`((?:shared|rollout|reward|learner)\.[\w.]+)`")
PANEL_KEYS = {"id", "type", "title", "description", "datasource", "gridPos", "fieldConfig"}

Document = dict[str, Any]


def read(path: Path) -> Document:
    loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert isinstance(loaded, dict)
    return loaded


@pytest.fixture(scope="module")
def services() -> Document:
    found: Document = read(ROOT / "docker-compose.yml")["services"]
    return found


@pytest.fixture(scope="module")
def scraped() -> dict[str, Document]:
    """Jobs by name."""
    jobs = read(MONITORING / "prometheus.yml")["scrape_configs"]
    return {job["job_name"]: job for job in jobs}


def mounts(service: Document) -> dict[str, str]:
    """Path in the container → path in the repository, of read-only bind mounts."""
    parts = [volume.split(":") for volume in service["volumes"]]
    return {part[1]: part[0] for part in parts if len(part) == 3 and part[2] == "ro"}


def shell(service: Document, **environ: str) -> "subprocess.CompletedProcess[str]":
    """A service's start as compose runs it, with nothing but these variables."""
    assert service["entrypoint"] == ["/bin/sh", "-c"]
    (script,) = service["command"]
    script = script.replace("$$", "$")
    return subprocess.run(
        ["/bin/sh", "-c", script],
        env={"PATH": os.environ["PATH"], **environ},
        capture_output=True,
        text=True,
        check=False,
    )


def test_every_service_of_ours_is_scraped_by_name_at_its_port(
    scraped: dict[str, Document], services: Document
) -> None:
    assert set(scraped) == set(PORTS)
    for name, job in scraped.items():
        (found,) = job["dns_sd_configs"]
        # A name has one A record per container: --scale needs no change here.
        assert (found["names"], found["type"], found["port"]) == ([name], "A", PORTS[name])
        if name in services:
            assert str(found["port"]) in yaml.safe_dump(services[name]), name
    ours = {name for name, service in services.items() if service["image"].startswith("tempsamp-")}
    assert "reward" in ours
    assert not {service for service in ours & set(PORTS) if service not in scraped}


def test_prometheus_shows_the_token_from_a_file_of_its_own(
    scraped: dict[str, Document], services: Document, tmp_path: Path
) -> None:
    files = {job["authorization"]["credentials_file"] for job in scraped.values()}
    assert files == {"/tmp/token"}
    service = services["prometheus"]
    assert service["tmpfs"][0].startswith("/tmp:")
    (script,) = service["command"]
    start = script.partition("exec ")[0].replace("/tmp/token", f"{tmp_path}/token")
    ended = shell({**service, "command": [start]}, TEMPSAMP_TOKEN="100%s\\n sesame")
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "token").read_text() == "100%s\\n sesame"
    assert (tmp_path / "token").stat().st_mode & 0o777 == 0o600
    assert TOKEN in service["environment"]


@pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool on PATH")
def test_promtool_accepts_the_configuration() -> None:
    check = ["promtool", "check", "config", "--syntax-only", str(MONITORING / "prometheus.yml")]
    subprocess.run(check, check=True, capture_output=True)


def test_grafana_does_not_start_with_an_empty_password(services: Document) -> None:
    for environ in ({}, {"GF_SECURITY_ADMIN_PASSWORD": ""}):
        refused = shell(services["grafana"], **environ)
        assert refused.returncode == 1
        assert refused.stderr.startswith("TEMPSAMP_GRAFANA_PASSWORD: found none")
        assert refused.stderr.count("\n") == 1
    started = shell(services["grafana"], GF_SECURITY_ADMIN_PASSWORD="sesame")
    assert "/run.sh" in started.stderr, "it went on to Grafana's own start"
    environment = services["grafana"]["environment"]
    assert environment["GF_AUTH_ANONYMOUS_ENABLED"] == "false"
    variable = environment["GF_SECURITY_ADMIN_PASSWORD"]
    name = re.fullmatch(r"\$\{(\w+):-\}", variable)
    assert name is not None
    assert f"#{name[1]}=" in (ROOT / ".env.example").read_text(encoding="utf-8")


def test_every_bind_mount_is_there_and_read_only(services: Document) -> None:
    for name in ("prometheus", "grafana"):
        found = mounts(services[name])
        assert found
        for path in found.values():
            assert (ROOT / path).exists(), path
        named = {volume.split(":")[0] for volume in services[name]["volumes"]}
        assert named - set(found.values()) == {f"{name}-data"}


def test_ports_of_the_profile_are_knobs_that_the_example_lists(services: Document) -> None:
    example = (ROOT / ".env.example").read_text(encoding="utf-8")
    for name in ("prometheus", "grafana"):
        assert services[name]["profiles"] == ["monitoring"]
        (port,) = services[name]["ports"]
        knob = re.fullmatch(r"127\.0\.0\.1:\$\{(\w+):-(\d+)\}:\2", port)
        assert knob is not None, port
        assert f"#{knob[1]}={knob[2]}" in example


def test_grafana_finds_prometheus_and_the_dashboard(services: Document) -> None:
    (source,) = read(MONITORING / "provisioning/datasources/prometheus.yml")["datasources"]
    (port,) = services["prometheus"]["ports"]
    assert source["url"] == f"http://prometheus:{port.rpartition(':')[2]}"
    interval = read(MONITORING / "prometheus.yml")["global"]["scrape_interval"]
    assert source["jsonData"]["timeInterval"] == interval
    assert {panel["datasource"]["uid"] for panel in panels()} == {source["uid"]}

    (provider,) = read(MONITORING / "provisioning/dashboards/ring.yml")["providers"]
    folder = provider["options"]["path"]
    assert mounts(services["grafana"])[folder] == "./deploy/monitoring/dashboards"
    home = services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home == f"{folder}/ring.json"
    assert mounts(services["grafana"])["/etc/grafana/provisioning"].endswith("provisioning")


def test_panels_have_an_id_a_unit_and_a_place_of_their_own() -> None:
    every = dashboard()["panels"]
    ids = [panel["id"] for panel in every]
    assert len(set(ids)) == len(ids)
    titles = [panel["title"] for panel in every]
    assert len(set(titles)) == len(titles)
    cells = [
        (x, y)
        for panel in every
        for place in [panel["gridPos"]]
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells), "two panels overlap"
    assert {x for x, _ in cells} <= set(range(24))
    for panel in panels():
        assert panel.keys() >= PANEL_KEYS
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS
        references = [target["refId"] for target in panel["targets"]]
        assert len(set(references)) == len(references) > 0


def has_knob(name: str) -> bool:
    """Whether a dotted name is one of the run file."""
    model: Any = Run
    for part in name.split("."):
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            return False
        if part not in model.model_fields:
            return False
        model = model.model_fields[part].annotation
    return True


def test_every_panel_says_what_to_turn() -> None:
    assert has_knob("learner.optimizer.lr")
    assert not has_knob("learner.optimizer.speed")
    for panel in panels():
        knobs = KNOB.findall(panel["description"])
        assert knobs, panel["title"]
        assert [knob for knob in knobs if not has_knob(knob)] == [], panel["title"]


def test_expressions_are_promql_over_our_jobs(scraped: dict[str, Document]) -> None:
    for title, expression, _ in expressions():
        assert selectors(expression), title
        for selector in selectors(expression):
            jobs = [value for label, _, value in selector.matchers if label == "job"]
            assert all(set(value.split("|")) <= set(scraped) for value in jobs), title
            assert selector.name.startswith(("tempsamp_", "up")), title


def test_every_figure_of_a_step_or_validation_has_a_panel() -> None:
    shown = {s.name for _, expression, _ in expressions() for s in selectors(expression)}
    names = {
        f"{series.name}_total" if series.kind in ("counter", "sum") else series.name
        for series in SERIES
    }
    assert len(names) > 40
    assert names - shown == set()


def test_a_wrong_expression_is_noticed() -> None:
    with pytest.raises(ValueError, match="unexpected character"):
        selectors("rate(tempsamp_learner_step[5m)")
    (learner, replica) = selectors('a{x!="1",y=~"b|c"} - rate(b_total[5m])')
    assert learner.fits({"__name__": "a", "x": "2", "y": "c"})
    assert not learner.fits({"__name__": "a", "x": "1", "y": "c"})
    assert not learner.fits({"__name__": "a", "x": "2", "y": "bc"})
    assert not learner.fits({"__name__": "a", "x": "2"})
    assert replica.fits({"__name__": "b_total"})


def test_an_empty_panel_is_noticed() -> None:
    """The ring's test holds this against what a run really shows."""
    series = series_of("# TYPE up gauge\n", job="learner", instance="a:1")
    assert series == [{"__name__": "up", "job": "learner", "instance": "a:1"}]
    faults = unanswered(series)
    assert len(faults) > 30
    assert not [fault for fault in faults if fault.startswith("Who answers")]
