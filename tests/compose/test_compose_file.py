"""docker-compose.yml, read without an engine: secrets, ports, images, health; the image's lock."""

import copy
import re
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from common.rest.auth import TOKEN_VARIABLE, is_loopback
from services.reward.server import DRAIN_S

ROOT = Path(__file__).resolve().parents[2]
SECRETS = (TOKEN_VARIABLE, "TEMPSAMP_REDIS_PASSWORD")
VARIABLE = re.compile(r"(?<!\$)\$\{(?P<name>\w+)(?P<kind>:-|:\?)?(?P<rest>[^}]*)\}")
IMAGE = re.compile(r"[a-z0-9-]+:\d[\w.-]*")
"""A name and a version, of whatever registry the engine takes by default."""

Document = dict[str, Any]


def lock(name: str) -> dict[str, str]:
    """Package → pinned version, as pip reads the lock with this Python."""
    lines = (ROOT / "deploy/locks" / name).read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if not line.startswith("#")]
    return {
        pin.name: str(pin.specifier).removeprefix("==")
        for pin in pins
        if pin.marker is None or pin.marker.evaluate()
    }


def by_default(value: str) -> str:
    """`value` as compose reads it when no variable is set."""
    return VARIABLE.sub(lambda found: found["rest"] if found["kind"] == ":-" else "", value)


def unwatched(document: Document) -> set[str]:
    """Services whose health others wait for, without a healthcheck: compose waits for ever."""
    services = document["services"]
    awaited = {
        name
        for service in services.values()
        if isinstance(service.get("depends_on"), dict)
        for name, condition in service["depends_on"].items()
        if condition["condition"] == "service_healthy"
    }
    return {name for name in awaited if "healthcheck" not in services[name]}


def optional_secrets(document: Document) -> list[str]:
    """Uses of a secret that do not stop compose when it is missing or empty."""
    return [
        found[0]
        for found in VARIABLE.finditer(yaml.safe_dump(document, width=10_000))
        if found["name"] in SECRETS and not (found["kind"] == ":?" and found["rest"])
    ]


def open_ports(document: Document) -> list[str]:
    """Ports other machines reach by default, or that a variable opens for a tokenless service."""
    found = []
    for name, service in document["services"].items():
        for port in service.get("ports", ()):
            host = by_default(port).rpartition(":")[0].rpartition(":")[0]
            fixed = port.startswith("127.0.0.1:")
            if not is_loopback(host) or not (fixed or TOKEN_VARIABLE in service["environment"]):
                found.append(f"{name} {port}")
    return found


def loose_images(document: Document) -> list[str]:
    """Images without a version, or from a named registry."""
    images = [service["image"] for service in document["services"].values()]
    return [image for image in images if not IMAGE.fullmatch(image)]


@pytest.fixture(scope="module")
def document() -> Document:
    loaded = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
    assert isinstance(loaded, dict)
    return loaded


def test_every_service_has_a_healthcheck_restarts_and_may_write_nothing(
    document: Document,
) -> None:
    assert set(document["services"]) == {"redis", "reward"}
    for service in document["services"].values():
        assert service["healthcheck"]["test"]
        assert service["restart"] == "unless-stopped"
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]


def test_whoever_is_waited_for_has_a_healthcheck(document: Document) -> None:
    assert unwatched(document) == set()
    broken = copy.deepcopy(document)
    broken["services"]["reward"]["depends_on"] = {"redis": {"condition": "service_healthy"}}
    assert unwatched(broken) == set()
    del broken["services"]["redis"]["healthcheck"]
    assert unwatched(broken) == {"redis"}


def test_compose_stops_when_a_secret_is_missing(document: Document) -> None:
    services = document["services"]
    assert TOKEN_VARIABLE in services["reward"]["environment"]
    assert "TEMPSAMP_REDIS_PASSWORD" in services["redis"]["environment"]
    assert optional_secrets(document) == []


@pytest.mark.parametrize(
    "use", ["${TEMPSAMP_TOKEN}", "${TEMPSAMP_TOKEN:-a}", "${TEMPSAMP_TOKEN:?}"]
)
def test_a_secret_with_a_way_around_is_noticed(document: Document, use: str) -> None:
    broken = copy.deepcopy(document)
    broken["services"]["reward"]["environment"][TOKEN_VARIABLE] = use
    assert optional_secrets(broken) == [use]


def test_no_command_line_carries_a_secret(document: Document) -> None:
    for service in document["services"].values():
        lines = yaml.safe_dump([service["command"], service["healthcheck"]["test"]])
        assert not {found["name"] for found in VARIABLE.finditer(lines)} & set(SECRETS)


def test_other_machines_reach_nothing_by_default(document: Document) -> None:
    assert open_ports(document) == []


@pytest.mark.parametrize(
    ("service", "port"),
    [
        ("reward", "8100:8100"),
        ("reward", "0.0.0.0:8100:8100"),
        ("reward", "${TEMPSAMP_REWARD_PUBLISH:-8100}:8100"),
        ("redis", "${TEMPSAMP_REDIS_PUBLISH:-127.0.0.1:6379}:6379"),
    ],
)
def test_an_open_port_is_noticed(document: Document, service: str, port: str) -> None:
    broken = copy.deepcopy(document)
    broken["services"][service]["ports"] = [port]
    assert open_ports(broken) == [f"{service} {port}"]


def test_images_have_a_version_and_no_registry(document: Document) -> None:
    assert loose_images(document) == []
    base = re.findall(r"^ARG PYTHON_IMAGE=(.+)$", dockerfile(), re.MULTILINE)
    assert [name for name in base if IMAGE.fullmatch(name)] == ["python:3.11-slim-bookworm"]
    assert set(re.findall(r"^FROM (\S+)", dockerfile(), re.MULTILINE)) == {"${PYTHON_IMAGE}"}


@pytest.mark.parametrize("image", ["redis", "redis:latest", "registry.example/redis:7.4"])
def test_a_loose_image_is_noticed(document: Document, image: str) -> None:
    broken = copy.deepcopy(document)
    broken["services"]["redis"]["image"] = image
    assert loose_images(broken) == [image]


def dockerfile() -> str:
    """The reward image's recipe."""
    return (ROOT / "deploy/Dockerfile.reward").read_text(encoding="utf-8")


def test_the_image_runs_as_the_package_version_and_not_as_root(document: Document) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert document["services"]["reward"]["image"] == f"tempsamp-reward:{project['version']}"
    assert re.findall(r"^USER (\S+)$", dockerfile(), re.MULTILINE) == ["tempsamp"]


def test_running_requests_may_end_before_the_container_is_killed(document: Document) -> None:
    grace = document["services"]["reward"]["stop_grace_period"]
    assert grace.endswith("s")
    assert float(grace[:-1]) > DRAIN_S


def test_the_reward_lock_pins_what_the_full_lock_pins() -> None:
    assert lock("reward.lock").items() <= lock("cpu.lock").items()


def needed(requirement: Requirement, seen: set[tuple[str, str]]) -> set[str]:
    """Names of a requirement and of all it needs here, read from installed packages."""
    name = canonicalize_name(requirement.name)
    found: set[str] = {name}
    for extra in ("", *requirement.extras):
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        for line in metadata.requires(name) or ():
            further = Requirement(line)
            if further.marker is None or further.marker.evaluate({"extra": extra}):
                found |= needed(further, seen)
    return found


def test_the_reward_lock_has_the_base_and_the_reward_extra_and_nothing_else() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    seen: set[tuple[str, str]] = set()
    wanted: set[str] = set()
    for line in (*project["dependencies"], *project["optional-dependencies"]["reward"]):
        wanted |= needed(Requirement(line), seen)
    assert set(lock("reward.lock")) == wanted
