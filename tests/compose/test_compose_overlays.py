"""deploy/compose.gpu.yml and deploy/compose.node.yml: settings that load, services that exist."""

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

ROOT = Path(__file__).resolve().parents[2]
OVERLAYS = ("compose.gpu.yml", "compose.node.yml")
ENVIRON = {
    "TEMPSAMP_TOKEN": "a",
    "TEMPSAMP_REDIS_PASSWORD": "b",
    "TEMPSAMP_HEAD": "10.0.0.1",
    "TEMPSAMP_NODE": "10.0.0.2",
    "TEMPSAMP_VIDEOS": "/srv/videos",
}
VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*)|:\?[^}]*)?\}")


class Loader(yaml.SafeLoader):
    """Knows Compose's two tags of merging."""


Loader.add_constructor("!override", lambda loader, node: built(loader, node))
Loader.add_constructor("!reset", lambda loader, node: built(loader, node))


def built(loader: Loader, node: yaml.Node) -> Any:
    """What a tagged node holds."""
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
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


@pytest.mark.parametrize("name", OVERLAYS)
@pytest.mark.parametrize("service", ["rollout", "learner"])
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


@pytest.mark.parametrize("names", [OVERLAYS[:1], OVERLAYS[1:], OVERLAYS])
def test_compose_merges_the_files(names: tuple[str, ...]) -> None:
    if docker("compose", "version").returncode:
        pytest.skip("docker has no compose")
    files = ("docker-compose.yml", *(f"deploy/{name}" for name in names))
    options = [word for file in files for word in ("--file", file)]
    merged = docker("compose", *options, "config", "--quiet", environ=ENVIRON)
    assert merged.returncode == 0, merged.stderr
