"""Overlays of deploy/: settings that load, services that exist, mounts; what the page exports."""

import ipaddress
import json
import re
import shlex
import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from common import config
from common.rest.address import base_url, family_of, is_loopback
from tests.fixtures.deploy.composed import docker
from tests.fixtures.pages.command_lines import leaf, unknown_options
from tests.fixtures.pages.documents import blocks

ROOT = Path(__file__).resolve().parents[2]
OVERLAYS = ("compose.gpu.yml", "compose.node.yml", "compose.infiniband.yml")
ENVIRON = {
    "TEMPSAMP_TOKEN": "a",
    "TEMPSAMP_REDIS_PASSWORD": "b",
    "TEMPSAMP_HEAD": "10.0.0.1",
    "TEMPSAMP_NODE": "10.0.0.2",
    # Below the place of the demo's clips.
    "TEMPSAMP_DATA": "/data/sets",
    "TEMPSAMP_RUN_FILE": "./run.toml",
}
GPUS = ("rollout", "learner")
VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*)|:\?[^}]*)?\}")


class Loader(yaml.SafeLoader):
    """Knows Compose's two tags of merging."""


class Override(list[Any]):
    """A list in place of that of the file below."""


Loader.add_constructor("!override", lambda loader, node: built(loader, node))
Loader.add_constructor("!reset", lambda loader, node: built(loader, node))


def built(loader: Loader, node: yaml.Node) -> Any:
    """What a tagged node holds."""
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    if isinstance(node, yaml.SequenceNode):
        return Override(loader.construct_sequence(node, deep=True))
    return None


def overlay(name: str) -> dict[str, Any]:
    """A file of deploy/, with the variables of `ENVIRON` and the defaults of the others."""
    text = (ROOT / "deploy" / name).read_text(encoding="utf-8")
    # Twice: a default may hold a variable.
    for _ in range(2):
        text = VARIABLE.sub(lambda found: ENVIRON.get(found[1], found[2] or ""), text)
    loaded = yaml.load(text, Loader)
    assert isinstance(loaded, dict)
    return loaded


@pytest.mark.parametrize("name", OVERLAYS)
def test_overlay_changes_services_that_exist(name: str) -> None:
    base = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
    assert set(overlay(name)["services"]) <= set(base["services"])


@pytest.mark.parametrize("name", OVERLAYS[:2])
@pytest.mark.parametrize("service", GPUS)
def test_settings_of_an_overlay_load(name: str, service: str) -> None:
    environ = overlay(name)["services"][service]["environment"]
    assert {"NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"} <= set(environ)
    text = " ".join(environ.get(key, "") for key in ("DEVICE_SETTINGS", "NODE_SETTINGS"))
    words = shlex.split(text)
    assert words[::2] == ["--set"] * (len(words) // 2)
    assert words
    run = config.load(ROOT / "deploy/configs/compose.toml", overrides=words[1::2], environ=ENVIRON)
    if name == "compose.node.yml":
        assert run.rollout.host == ENVIRON["TEMPSAMP_NODE"]
        assert run.learner.host == ENVIRON["TEMPSAMP_HEAD"]
        assert run.learner.metrics_host == ENVIRON["TEMPSAMP_HEAD"]
        assert ENVIRON["TEMPSAMP_HEAD"] in run.shared.redis_url
    elif service == "rollout":
        assert (run.rollout.device, run.rollout.gpu) == ("cuda", "claim")
    else:
        assert run.learner.device == "cuda"


def test_nodes_may_have_ipv6_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENVIRON, "TEMPSAMP_HEAD", "[fd00::1]")
    monkeypatch.setitem(ENVIRON, "TEMPSAMP_NODE", "[fd00::2]")
    services = overlay("compose.node.yml")["services"]
    words = shlex.split(services["rollout"]["environment"]["NODE_SETTINGS"])
    run = config.load(ROOT / "deploy/configs/compose.toml", overrides=words[1::2], environ=ENVIRON)
    assert {urlsplit(url).hostname for url in (run.shared.redis_url, run.shared.reward_url)} == {
        "fd00::1"
    }
    for host in (run.rollout.host, run.learner.host):
        assert family_of(host) == socket.AF_INET6
        assert urlsplit(base_url(host, 8200)).hostname == host
    # Docker wants brackets around the address of a port.
    assert services["reward"]["ports"] == ["[fd00::1]:8100:8100"]


def test_the_base_file_takes_what_overlays_set() -> None:
    base = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
    for service in ("rollout", "learner"):
        command = base["services"][service]["command"][-1]
        assert "$$DEVICE_SETTINGS $$NODE_SETTINGS" in command
        environ = base["services"][service]["environment"]
        assert environ["DEVICE_SETTINGS"] == environ["NODE_SETTINGS"] == ""


def test_a_learner_of_any_run_file_can_be_scraped() -> None:
    base = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
    settings = re.findall(r"--set (\S+=\S+)", base["services"]["learner"]["command"][-1])
    recipe = ROOT / "deploy/configs/timelens_tempsamp_qwen3_5_4b.toml"
    learner = config.load(recipe, overrides=settings, environ=ENVIRON).learner
    assert not is_loopback(learner.metrics_host)
    assert base["services"]["learner"]["expose"] == [str(learner.metrics_port)]


def options(line: str) -> dict[str, str]:
    """Options with a value, as words give them."""
    return dict(re.findall(r"--([a-z-]+) ([^-\s]\S*)", line))


def test_ranks_have_time_for_a_checkpoint_and_rank_0_is_on_the_head() -> None:
    learner = overlay("compose.gpu.yml")["services"]["learner"]
    assert "tempsamp learner --ranks" in learner["environment"]["LEARNER"]
    assert int(learner["stop_grace_period"].removesuffix("s")) >= 240
    example = (ROOT / ".env.example").read_text(encoding="utf-8")
    (line,) = re.findall(r"^# (tempsamp learner .+)$", example, re.MULTILINE)
    assert options(line) == {"nodes": "2", "node-rank": "0", "meet": "HEAD:29500", "ranks": "8"}
    assert unknown_options(*leaf(line.split()[1:])) == set()


def test_folders_of_new_volumes_exist_in_the_image() -> None:
    recipe = (ROOT / "deploy/Dockerfile.ring").read_text(encoding="utf-8")
    (made,) = re.findall(r"install --directory --mode 1777 (.+)", recipe)
    gpus = overlay("compose.gpu.yml")["services"]["rollout"]["volumes"]
    named = {volume.split(":")[1] for volume in gpus if isinstance(volume, str)}
    assert {"/data", "/runs", *named} <= set(made.split())


def hidden(volumes: list[Any]) -> list[str]:
    """Mounts that cannot be made, as they lie at or below one that is read-only."""
    places = [
        (volume["target"], volume.get("read_only", False))
        if isinstance(volume, dict)
        else (volume.split(":")[1], volume.endswith(":ro"))
        for volume in volumes
    ]
    return [
        inner
        for number, (inner, _) in enumerate(places)
        for other, (outer, read_only) in enumerate(places)
        if number != other and read_only and Path(inner).is_relative_to(outer)
    ]


def test_a_mount_below_a_read_only_one_is_noticed() -> None:
    videos = {"type": "bind", "target": "/data/videos", "read_only": True}
    assert hidden(["clips:/data:ro", videos]) == ["/data/videos"]
    assert hidden(["clips:/data", videos]) == []


@pytest.mark.parametrize("service", GPUS)
def test_gpus_read_one_folder_of_the_host_in_place_of_the_demos_clips(service: str) -> None:
    base = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
    volumes = overlay("compose.gpu.yml")["services"][service]["volumes"]
    assert isinstance(volumes, Override)
    assert hidden(list(volumes)) == []
    binds = [volume for volume in volumes if isinstance(volume, dict)]
    assert {bind["target"]: bind.get("read_only", False) for bind in binds} == {
        ENVIRON["TEMPSAMP_DATA"]: True,
        "/etc/tempsamp/run.toml": True,
        **({"/runs": False} if service == "learner" else {}),
    }
    assert all(bind["bind"] == {"create_host_path": False} for bind in binds)
    kept = {v["target"] for v in base["services"][service]["volumes"] if isinstance(v, dict)}
    assert kept <= {bind["target"] for bind in binds}


def merged(files: tuple[str, ...], environ: dict[str, str]) -> dict[str, Any]:
    """What compose makes of the files: the services."""
    if docker("compose", "version").returncode:
        pytest.skip("docker has no compose")
    given = {"COMPOSE_FILE": ":".join(files), "COMPOSE_DISABLE_ENV_FILE": "1", **environ}
    found = docker("compose", "config", "--format", "json", environ=given)
    assert found.returncode == 0, found.stderr
    services = json.loads(found.stdout)["services"]
    assert isinstance(services, dict)
    return services


@pytest.mark.parametrize("names", [OVERLAYS[:1], OVERLAYS[1:2], OVERLAYS[:2], OVERLAYS])
def test_compose_merges_the_files(names: tuple[str, ...]) -> None:
    services = merged(("docker-compose.yml", *(f"deploy/{name}" for name in names)), ENVIRON)
    for service in GPUS:
        assert hidden(services[service]["volumes"]) == []
        assert ("devices" in services[service]) == (OVERLAYS[2] in names)


@pytest.mark.parametrize("service", GPUS)
def test_gpus_know_of_a_hub_and_of_threads_what_the_host_says(service: str) -> None:
    files = ("docker-compose.yml", "deploy/compose.gpu.yml")
    passed = {"HF_ENDPOINT": "http://mirror", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "7"}
    given = {**ENVIRON, **passed, "TEMPSAMP_MODELS": "/srv/models"}
    told = merged(files, given)[service]
    assert told["environment"].items() >= passed.items()
    assert told["volumes"][-1] | {"bind": {}} == {
        "type": "bind",
        "source": "/srv/models",
        "target": "/models",
        "bind": {},
    }


@pytest.mark.parametrize("service", GPUS)
def test_what_the_host_does_not_say_is_unset(service: str, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("HF_ENDPOINT", "HF_HUB_OFFLINE", "OMP_NUM_THREADS")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    told = merged(("docker-compose.yml", "deploy/compose.gpu.yml"), ENVIRON)[service]
    # Compose hands a null to the engine as a name without a value, which takes it away.
    assert {name: told["environment"][name] for name in names} == dict.fromkeys(names)


def machines() -> list[dict[str, str]]:
    """What docs/cluster.md exports on each machine, with what it exports on all of them."""
    exports = [
        dict(w.split("=", 1) for words in block.commands if words[0] == "export" for w in words[1:])
        for block in blocks()
        if block.page == "docs/cluster.md" and "export TEMPSAMP_" in block.text
    ]
    common, *more = exports
    return [{**common, **machine} for machine in more]


def test_the_page_gives_addresses_where_docker_wants_them() -> None:
    assert len(machines()) == 3
    for exports in machines():
        for name in ("TEMPSAMP_HEAD", "TEMPSAMP_NODE"):
            ipaddress.ip_address(exports[name])


@pytest.mark.parametrize("machine", range(3))
def test_compose_takes_what_the_page_exports(machine: int) -> None:
    exports = machines()[machine]
    secrets = {name: ENVIRON[name] for name in ("TEMPSAMP_TOKEN", "TEMPSAMP_REDIS_PASSWORD")}
    files = tuple(exports.pop("COMPOSE_FILE").split(":"))
    services = merged(files, {**secrets, **exports})
    (port,) = services["redis"]["ports"]
    assert port["host_ip"] == exports["TEMPSAMP_HEAD"]
    for service in GPUS:
        places = {v["target"]: v["source"] for v in services[service]["volumes"]}
        assert places[exports["TEMPSAMP_DATA"]] == exports["TEMPSAMP_DATA"]
