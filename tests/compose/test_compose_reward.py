"""The composed services as a user runs them: build, up, score, scale, down, on a real engine.

Skipped with a reason where no engine or compose answers, or the base images are not there (tests
pull nothing). `TEMPSAMP_BUILD_CA` counts here as it does for users.
"""

import json
import os
import re
import secrets
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.fixtures.documents import example

ROOT = Path(__file__).resolve().parents[2]
ASK_TIMEOUT_S, WORK_TIMEOUT_S = 20, 240
REQUEST = {
    "items": [
        {
            "task": "temporal_grounding",
            "mode": "answer",
            "target": {"spans": [[7.0, 11.0]]},
            "duration_s": 60.0,
            "responses": ["<answer> 7.0 to 11.0 </answer>", "no idea"],
        }
    ],
    "shaping": {"kind": "nonlinear"},
}

pytestmark = pytest.mark.timeout(600)


def docker(
    *arguments: str, environ: dict[str, str] | None = None, timeout_s: int = ASK_TIMEOUT_S
) -> subprocess.CompletedProcess[str]:
    """One docker command in the repository; 127 where there is no docker."""
    command = ["docker", *arguments]
    try:
        return subprocess.run(
            command,
            cwd=ROOT,
            env={**os.environ, **(environ or {})},
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
    except FileNotFoundError as error:
        return subprocess.CompletedProcess(command, 127, "", str(error))


def missing() -> str | None:
    """Why the services cannot be built here; None when they can."""
    if docker("version").returncode:
        return "no docker engine answers"
    if docker("compose", "version").returncode:
        return "docker has no compose"
    recipe = (ROOT / "deploy/Dockerfile.reward").read_text(encoding="utf-8")
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))["services"]
    bases = [
        *re.findall(r"^ARG PYTHON_IMAGE=(\S+)$", recipe, re.MULTILINE),
        *(service["image"] for service in services.values() if "build" not in service),
    ]
    absent = [image for image in bases if docker("image", "inspect", image).returncode]
    return f"images not on this machine: {', '.join(absent)}" if absent else None


@dataclass(frozen=True)
class Composed:
    """The services under a project name of their own, on ports of the system's choice."""

    project: str
    token: str
    password: str

    def run(self, *arguments: str, timeout_s: int = WORK_TIMEOUT_S) -> str:
        """One compose command; its output.

        Raises:
            AssertionError: it failed; carries what it said.
        """
        environ = {
            "TEMPSAMP_TOKEN": self.token,
            "TEMPSAMP_REDIS_PASSWORD": self.password,
            "TEMPSAMP_REWARD_PUBLISH": "127.0.0.1:0",
            "TEMPSAMP_REWARD_WORKERS": "2",
            "TEMPSAMP_REDIS_PORT": "0",
        }
        ended = docker(
            "compose",
            "--project-name",
            self.project,
            *arguments,
            environ=environ,
            timeout_s=timeout_s,
        )
        assert ended.returncode == 0, ended.stderr[-4000:]
        return ended.stdout

    def reward(self, *, index: int = 1, token: str | None = None) -> httpx.Client:
        """A client of one replica."""
        address = self.run("port", f"--index={index}", "reward", "8100").strip()
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return httpx.Client(
            base_url=f"http://{address}", headers=headers, timeout=20, trust_env=False
        )

    def inspect(self, service: str) -> dict[str, Any]:
        """The engine's description of a service's first container."""
        container = self.run("ps", "--quiet", service).split()[0]
        described: list[dict[str, Any]] = json.loads(docker("inspect", container).stdout)
        return described[0]


def documented() -> list[list[str]]:
    """README's compose commands: first up, then with two reward replicas."""
    commands = [words for words in example("compose").commands if "docker" in words]
    return [words[words.index("compose") + 1 :] for words in commands]


@pytest.fixture(scope="module")
def composed() -> Iterator[Composed]:
    if reason := missing():
        pytest.skip(reason)
    services = Composed(
        f"tempsamp-test-{secrets.token_hex(4)}", secrets.token_hex(16), secrets.token_hex(16)
    )
    try:
        services.run("build")
        services.run(*documented()[0], "--wait-timeout", "120")
        yield services
    finally:
        services.run("down", "--volumes", "--remove-orphans")


def test_compose_refuses_to_start_without_the_secrets() -> None:
    if docker("compose", "version").returncode:
        pytest.skip("docker has no compose")
    for name in ("TEMPSAMP_TOKEN", "TEMPSAMP_REDIS_PASSWORD"):
        environ = {"TEMPSAMP_TOKEN": "a", "TEMPSAMP_REDIS_PASSWORD": "b", name: ""}
        ended = docker("compose", "config", "--quiet", environ=environ)
        assert ended.returncode != 0
        assert name in ended.stderr


def test_a_request_is_scored_with_the_token_and_refused_without(composed: Composed) -> None:
    with composed.reward() as stranger:
        assert stranger.get("/healthz").status_code == 200
        assert stranger.post("/v1/score", json=REQUEST).status_code == 401
    with composed.reward(token=composed.token) as caller:
        verdicts = caller.post("/v1/score", json=REQUEST).raise_for_status().json()["items"][0]
    rewards = [verdict["reward"] for verdict in verdicts["verdicts"]]
    assert rewards == pytest.approx([0.90182, 0.08676], abs=1e-5)


def test_the_workers_count_together_on_a_read_only_root(composed: Composed) -> None:
    body = {"rewards": [0.0, 1.0], "shaping": {"kind": "nonlinear"}}
    with composed.reward(token=composed.token) as caller:
        for _ in range(10):
            caller.post("/v1/shape", json=body).raise_for_status()
        counters = caller.get("/metrics").text
    assert 'seconds_count{route="/v1/shape",status="200"} 10.0' in counters
    assert composed.inspect("reward")["HostConfig"]["ReadonlyRootfs"] is True


def test_the_image_has_no_torch_and_the_process_is_not_root(composed: Composed) -> None:
    said = composed.run(
        "exec",
        "-T",
        "reward",
        "python",
        "-c",
        "import importlib.util, os; print(os.getuid(), importlib.util.find_spec('torch'))",
    )
    assert said.split() == ["10001", "None"]


def test_redis_wants_its_password_and_keeps_an_append_only_file(composed: Composed) -> None:
    ask = ("exec", "-T", "redis", "sh", "-c")
    assert "NOAUTH" in composed.run(*ask, "redis-cli ping")
    with_password = 'REDISCLI_AUTH="$TEMPSAMP_REDIS_PASSWORD" redis-cli config get appendonly'
    assert composed.run(*ask, with_password).split() == ["appendonly", "yes"]


def test_no_process_shows_a_secret(composed: Composed) -> None:
    for service in ("redis", "reward"):
        lines = composed.run("top", service)
        assert service in lines
        assert composed.token not in lines
        assert composed.password not in lines


def test_everything_is_published_on_loopback_only(composed: Composed) -> None:
    for service in ("redis", "reward"):
        published = composed.inspect(service)["NetworkSettings"]["Ports"]
        assert [offer["HostIp"] for offers in published.values() for offer in offers] == [
            "127.0.0.1"
        ]


def test_two_replicas_answer_after_scaling(composed: Composed) -> None:
    composed.run(*documented()[1], "--no-build", "--no-recreate", "--wait")
    addresses = set()
    for index in (1, 2):
        with composed.reward(index=index, token=composed.token) as replica:
            replica.post("/v1/score", json=REQUEST).raise_for_status()
            addresses.add(str(replica.base_url))
    assert len(addresses) == 2
