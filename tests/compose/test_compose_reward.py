"""Redis and the reward service in containers, as a user runs them: build, up, score, scale, down.

Skipped with a reason where no engine or compose answers, or the base images are not there (tests
pull nothing; `make compose-test` makes look-alikes). `TEMPSAMP_BUILD_CA` counts here as it does for
users.
"""

from collections.abc import Iterator

import pytest

from tests.fixtures.deploy.composed import (
    REQUEST,
    Composed,
    base_image,
    docker,
    documented,
    missing,
)

MAX_IMAGE_BYTES, OFFICIAL_BASE_BYTES = 250e6, 130e6
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def composed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Composed]:
    if reason := missing():
        pytest.skip(reason)
    services = Composed(tmp_path_factory.mktemp("runs"))
    try:
        services.run("build", "reward", timeout_s=500)
        services.run(*documented("compose-services")[0], "--wait-timeout", "120")
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
        assert "make env" in ended.stderr


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


def test_the_image_adds_little_to_its_base(composed: Composed) -> None:
    """At most 250 MB on the official base; the look-alike of `make compose-test` is larger."""
    sizes = [
        int(docker("image", "inspect", "--format", "{{.Size}}", image).stdout)
        for image in (composed.inspect("reward")["Config"]["Image"], base_image())
    ]
    assert 10e6 < sizes[0] - sizes[1] <= MAX_IMAGE_BYTES - OFFICIAL_BASE_BYTES


def test_an_image_that_cannot_be_built_names_the_knob(composed: Composed) -> None:
    nowhere = "http://127.0.0.1:9/simple"
    refused = docker(
        *("compose", "--project-name", composed.project, "build", "reward"),
        environ={**composed.environ, "TEMPSAMP_PIP_INDEX": nowhere},
        timeout_s=240,
    )
    assert refused.returncode != 0
    said = f"pip cannot get these packages from {nowhere} (TEMPSAMP_PIP_INDEX)"
    assert said in refused.stdout + refused.stderr


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
    composed.run(
        "up", "--detach", "--no-build", "--no-recreate", "--wait", "--scale", "reward=2", "reward"
    )
    addresses = set()
    for index in (1, 2):
        with composed.reward(index=index, token=composed.token) as replica:
            replica.post("/v1/score", json=REQUEST).raise_for_status()
            addresses.add(str(replica.base_url))
    assert len(addresses) == 2
