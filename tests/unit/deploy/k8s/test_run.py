"""The run inside the manifests: configuration, addresses, scaling, ranks, probes."""

import copy
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml

from common import config
from common.config import Run
from common.queue.broker import ROLLOUT, Broker
from common.rest.auth import PUBLIC_PATHS
from common.secrets import TOKEN_OF
from tests.fixtures.deploy.manifests import (
    OVERLAYS,
    ROOT,
    Document,
    Documents,
    command,
    named,
    of_kind,
    overrides,
    render,
    settings,
    workload,
)
from tests.fixtures.pages.documents import example, run_script

SECRETS = {"TEMPSAMP_TOKEN": "a", "TEMPSAMP_REDIS_PASSWORD": "b"}
WAITING_SHARE = ("tempsamp_learner_wait_seconds_total", "tempsamp_learner_step_wall_seconds_total")
"""What the second trigger divides: the learner's own /metrics has both."""
LAG_NEEDS_REDIS = 7
RECIPES = sorted((ROOT / "deploy/configs").glob("*_*.toml"))
POD_IP = "fd00::7"
"""The pod's own address, as `command` fills it in."""


def words(documents: Documents, app: str) -> list[str]:
    """The command line of an app in its pod."""
    return command(workload(documents, app).container, documents)


def run_of(documents: Documents, app: str, folder: Path, *, recipe: Path | None = None) -> Run:
    """What rollout or learner reads in its pod, or would with a recipe as `RUN_FILE`."""
    files = named(documents, "ConfigMap", "tempsamp-run-files")["data"]
    if recipe is not None:
        named(documents, "ConfigMap", "tempsamp-settings")["data"]["RUN_FILE"] = recipe.name
        files[recipe.name] = recipe.read_text(encoding="utf-8")
    given = words(documents, app)
    (path,) = [w.removeprefix("--config=") for w in given if w.startswith("--config=")]
    assert Path(path).parent == Path("/etc/tempsamp")
    file = folder / Path(path).name
    file.write_text(files[file.name], encoding="utf-8")
    return config.load(file, overrides=overrides(given), environ=SECRETS)


@pytest.mark.parametrize(
    ("app", "roles"),
    [
        ("reward", {"score"}),
        ("rollout", {"control", "generate", "score"}),
        ("learner", {"control", "generate"}),
    ],
)
def test_each_service_may_have_the_tokens_of_its_roles(app: str, roles: set[str]) -> None:
    env = workload(render(OVERLAYS[0]), app).container["env"]
    told = {
        entry["name"]: entry["valueFrom"]["secretKeyRef"].get("optional", False)
        for entry in env
        if entry["name"].endswith("TOKEN")
    }
    assert told == {"TEMPSAMP_TOKEN": False} | {TOKEN_OF[role]: True for role in roles}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_rollout_and_learner_read_one_run(overlay: str, tmp_path: Path) -> None:
    documents = render(overlay)
    rollout, learner = (run_of(documents, app, tmp_path) for app in ("rollout", "learner"))
    assert rollout.shared == learner.shared
    assert rollout.shared.run_id == settings(documents)["RUN_ID"]
    assert rollout.rollout.host == learner.learner.host == POD_IP
    assert rollout.rollout.weights == "learner"


@pytest.mark.parametrize(
    ("overlay", "recipe"),
    [*((overlay, None) for overlay in OVERLAYS), *(("gpu", recipe) for recipe in RECIPES)],
    ids=lambda value: value.stem if isinstance(value, Path) else value,
)
def test_folders_of_the_run_lie_on_its_volumes(
    overlay: str, recipe: Path | None, tmp_path: Path
) -> None:
    documents = render(overlay)
    run = run_of(documents, "learner", tmp_path, recipe=recipe)
    mounts = workload(documents, "learner").container["volumeMounts"]
    places = {m["name"]: Path(m["mountPath"]) for m in mounts}
    assert run.learner.run_dir.is_relative_to(places["runs"])
    assert run.shared.video.roots == (places["clips"],)
    read = (run.learner.rows, run.learner.validation.rows, run.shared.video.cache)
    assert [path for path in read if path and not path.is_relative_to(places["clips"])] == []
    assert recipe is None or run.shared.video.cache is not None


def unscraped(documents: Documents, rollout: Run, learner: Run) -> list[str]:
    """Apps that do not listen where the PodMonitor asks, for scaling and the dashboard."""
    (endpoint,) = named(documents, "PodMonitor", "tempsamp")["spec"]["podMetricsEndpoints"]
    given = dict(re.findall(r"--(host|port)=(\S+)", " ".join(words(documents, "reward"))))
    listens = {
        "reward": (given["host"], int(given["port"])),
        "rollout": (rollout.rollout.host, rollout.rollout.port),
        "learner": (learner.learner.metrics_host, learner.learner.metrics_port),
    }
    return [
        app
        for app, place in listens.items()
        if place != (POD_IP, workload(documents, app).ports[endpoint["port"]])
    ]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_service_listens_where_prometheus_asks(overlay: str, tmp_path: Path) -> None:
    documents = render(overlay)
    runs = [run_of(documents, app, tmp_path) for app in ("rollout", "learner")]
    assert unscraped(documents, *runs) == []
    on_loopback = "--set=learner.metrics_host=$(POD_IP)"
    workload(documents, "learner").container["command"].remove(on_loopback)
    assert unscraped(documents, runs[0], run_of(documents, "learner", tmp_path)) == ["learner"]


def dead_addresses(documents: Documents, run: Run) -> list[str]:
    """Addresses of a run that no Service answers at."""
    known = {
        (d["metadata"]["name"], port["port"])
        for d in of_kind(documents, "Service")
        for port in d["spec"]["ports"]
    }
    urls = (run.shared.redis_url, run.shared.reward_url)
    return [url for url in urls if (urlsplit(url).hostname, urlsplit(url).port) not in known]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_services_answer_at_the_addresses_of_the_run(overlay: str, tmp_path: Path) -> None:
    documents = render(overlay)
    run = run_of(documents, "rollout", tmp_path)
    assert dead_addresses(documents, run) == []
    named(documents, "Service", "tempsamp-reward")["spec"]["ports"][0]["port"] = 80
    assert dead_addresses(documents, run) == [run.shared.reward_url]


def too_few_gpus(documents: Documents, rollout: Run, learner: Run) -> list[str]:
    """Apps whose pods have another number of GPUs than they use."""
    use = {
        "rollout": rollout.rollout.tensor_parallel * (rollout.rollout.device == "cuda"),
        "learner": int(settings(documents)["NPROC_PER_NODE"]) * (learner.learner.device == "cuda"),
    }
    return [
        app
        for app, wanted in use.items()
        if int(workload(documents, app).container["resources"]["limits"].get("nvidia.com/gpu", 0))
        != wanted
    ]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_have_the_gpus_that_they_use(overlay: str, tmp_path: Path) -> None:
    documents = render(overlay)
    runs = [run_of(documents, app, tmp_path) for app in ("rollout", "learner")]
    assert too_few_gpus(documents, *runs) == []
    settings_map = named(documents, "ConfigMap", "tempsamp-settings")["data"]
    settings_map["NPROC_PER_NODE"] = "8"
    assert too_few_gpus(documents, *runs) == (["learner"] if overlay == "gpu" else [])


def misguided_scaling(documents: Documents, run: Run) -> list[str]:
    """What keeps the autoscaler from following the run."""
    scaled = named(documents, "ScaledObject", "tempsamp-rollout")
    spec = scaled["spec"]
    lag, waits = spec["triggers"]
    broker = Broker(run.shared.redis_url, run_id=run.shared.run_id)
    asked = lag["metadata"]
    redis = urlsplit(run.shared.redis_url)
    tag = workload(documents, "redis").container["image"].rpartition(":")[2]
    outstanding = (run.learner.max_staleness + 1) * run.learner.groups_per_step
    namespace = scaled["metadata"]["namespace"]
    rules = {
        "stream": asked["stream"] == broker._prompts,
        "consumer group": asked["consumerGroup"] == broker._readers[broker._prompts] == ROLLOUT,
        "database": f"/{asked['databaseIndex']}" == redis.path,
        "address": asked["address"] == f"{redis.hostname}.{namespace}:{redis.port}",
        "lagCount": int(asked["lagCount"]) < run.rollout.concurrent_prompts,
        "redis version": int(tag.partition(".")[0]) >= LAG_NEEDS_REDIS,
        "minReplicaCount": spec["minReplicaCount"] >= max(1, run.learner.min_replicas),
        "maxReplicaCount": spec["minReplicaCount"] <= spec["maxReplicaCount"] <= outstanding,
        "waiting share": set(re.findall(r"tempsamp_\w+", waits["metadata"]["query"]))
        == set(WAITING_SHARE),
        "namespace": f'namespace="{namespace}"' in waits["metadata"]["query"],
        "share is a ratio": waits["metricType"] == "Value"
        and 0 < float(waits["metadata"]["threshold"]) < 1,
    }
    return [rule for rule, holds in rules.items() if not holds]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_autoscaler_follows_the_run(overlay: str, tmp_path: Path) -> None:
    documents = render(overlay)
    assert misguided_scaling(documents, run_of(documents, "rollout", tmp_path)) == []


def _lag(**changed: str) -> Callable[[Document], object]:
    return lambda spec: spec["triggers"][0]["metadata"].update(changed)


def _waits(**changed: str) -> Callable[[Document], object]:
    return lambda spec: spec["triggers"][1]["metadata"].update(changed)


@pytest.mark.parametrize(
    ("rule", "break_it"),
    [
        ("stream", _lag(stream="tempsamp:other:prompts")),
        ("consumer group", _lag(consumerGroup="learner")),
        ("database", _lag(databaseIndex="1")),
        ("address", _lag(address="tempsamp-redis:6379")),
        ("lagCount", _lag(lagCount="8")),
        ("minReplicaCount", lambda spec: spec.update(minReplicaCount=0)),
        ("maxReplicaCount", lambda spec: spec.update(maxReplicaCount=17)),
        ("waiting share", _waits(query="sum(tempsamp_learner_wait_seconds)")),
        ("namespace", _waits(query="tempsamp_learner_wait_seconds_total")),
        ("share is a ratio", _waits(threshold="20")),
        ("share is a ratio", lambda spec: spec["triggers"][1].update(metricType="AverageValue")),
    ],
)
def test_scaling_that_does_not_follow_is_noticed(
    rule: str, break_it: Callable[[Document], object], tmp_path: Path
) -> None:
    documents = copy.deepcopy(render("cpu"))
    break_it(named(documents, "ScaledObject", "tempsamp-rollout")["spec"])
    assert rule in misguided_scaling(documents, run_of(documents, "rollout", tmp_path))


def test_a_redis_without_lag_is_noticed(tmp_path: Path) -> None:
    documents = render("cpu")
    workload(documents, "redis").container["image"] = "redis:6.2"
    found = misguided_scaling(documents, run_of(documents, "rollout", tmp_path))
    assert found == ["redis version"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_four_pods_a_minute_up_one_in_five_minutes_down(overlay: str) -> None:
    documents = render(overlay)
    scaled = named(documents, "ScaledObject", "tempsamp-rollout")["spec"]
    reward = named(documents, "HorizontalPodAutoscaler", "tempsamp-reward")["spec"]
    for behavior in (
        scaled["advanced"]["horizontalPodAutoscalerConfig"]["behavior"],
        reward["behavior"],
    ):
        assert behavior == {
            "scaleUp": {"policies": [{"type": "Pods", "value": 4, "periodSeconds": 60}]},
            "scaleDown": {"policies": [{"type": "Pods", "value": 1, "periodSeconds": 300}]},
        }
    for name in ("tempsamp-reward", "tempsamp-rollout"):
        assert "replicas" not in named(documents, "Deployment", name)["spec"]


def scattered_ranks(documents: Documents) -> list[str]:
    """What keeps the learner's pods from finding each other, or a restart from going on."""
    given = words(documents, "learner")
    option = dict(word[2:].split("=", 1) for word in given if re.match(r"--[a-z-]+=", word))
    host, _, port = option["meet"].rpartition(":")
    spec = named(documents, "JobSet", "tempsamp-learner")["spec"]
    (job,) = spec["replicatedJobs"]
    template = job["template"]["spec"]
    nodes = int(settings(documents)["NNODES"])
    first = f"tempsamp-learner-{job['name']}-0-0.{spec['network']['subdomain']}"
    ports = workload(documents, "learner").ports
    rules = {
        "command": given[:2] == ["tempsamp", "learner"],
        "nodes": int(option["nodes"])
        == template["parallelism"]
        == template["completions"]
        == nodes,
        "ranks": option["ranks"] == settings(documents)["NPROC_PER_NODE"],
        "indexed": template["completionMode"] == "Indexed" and job["replicas"] == 1,
        "first pod": host == first,
        "port": int(port) == ports["meet"],
        "names before readiness": spec["network"]["publishNotReadyAddresses"] is True
        and spec["network"]["enableDNSHostnames"] is True,
        "resume": "--resume" in given,
        # Or a drained learner would complete its Job.
        "stopped is not finished": int(option.get("stopped-code", 0)) != 0,
        "one generation": spec["failurePolicy"]["restartStrategy"] == "BlockingRecreate"
        and template["backoffLimit"] == 0,
    }
    return [rule for rule, holds in rules.items() if not holds]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_ranks_meet_and_a_restart_resumes(overlay: str) -> None:
    assert scattered_ranks(render(overlay)) == []


def _job(documents: Documents) -> Document:
    spec = named(documents, "JobSet", "tempsamp-learner")["spec"]
    found = spec["replicatedJobs"][0]
    assert isinstance(found, dict)
    return found


def _swap(documents: Documents, word: str, other: str) -> None:
    command = workload(documents, "learner").container["command"]
    command[command.index(word)] = other


@pytest.mark.parametrize(
    ("rule", "break_it"),
    [
        ("nodes", lambda d: _job(d)["template"]["spec"].update(completions=2)),
        ("ranks", lambda d: _swap(d, "--ranks=$(NPROC_PER_NODE)", "--ranks=1")),
        ("stopped is not finished", lambda d: _swap(d, "--stopped-code=143", "--stopped-code=0")),
        ("indexed", lambda d: _job(d).update(replicas=2)),
        ("first pod", lambda d: _job(d).update(name="rank")),
        ("port", lambda d: workload(d, "learner").container["ports"][0].update(containerPort=1)),
        ("resume", lambda d: workload(d, "learner").container["command"].remove("--resume")),
        ("one generation", lambda d: _job(d)["template"]["spec"].update(backoffLimit=3)),
        (
            "names before readiness",
            lambda d: named(d, "JobSet", "tempsamp-learner")["spec"]["network"].update(
                publishNotReadyAddresses=False
            ),
        ),
    ],
)
def test_scattered_ranks_are_noticed(rule: str, break_it: Callable[[Documents], object]) -> None:
    documents = render("gpu")
    break_it(documents)
    assert rule in scattered_ranks(documents)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_probes_ask_paths_that_need_no_token(overlay: str) -> None:
    documents = render(overlay)
    asked = {
        (app, probe): workload(documents, app).container[probe]["httpGet"]["path"]
        for app in ("reward", "rollout")
        for probe in ("startupProbe", "readinessProbe", "livenessProbe")
    }
    assert {path.partition("?")[0] for path in asked.values()} <= PUBLIC_PATHS
    assert asked["rollout", "startupProbe"] == "/readyz"
    assert asked["rollout", "readinessProbe"] == "/readyz?serving=true"
    for app in ("reward", "rollout"):
        assert asked[app, "livenessProbe"] == "/healthz"


def test_the_page_s_command_shows_the_overlay(tmp_path: Path) -> None:
    for folder in ("k8s", "configs"):
        shutil.copytree(ROOT / "deploy" / folder, tmp_path / "deploy" / folder)
    shown = run_script(example("kustomize").script, cwd=tmp_path, timeout_s=60)
    assert list(yaml.safe_load_all(shown)) == render("cpu")
