"""What schemas do not see, on our overlays and on documents broken for the purpose."""

import tomllib
from collections.abc import Callable

import pytest
import yaml

from services.reward.server import DRAIN_S as REWARD_DRAIN_S
from services.rollout.replica import DRAIN_S as ROLLOUT_DRAIN_S
from tests.fixtures.deploy import manifest_checks as checks
from tests.fixtures.deploy.manifests import (
    OVERLAYS,
    ROOT,
    Document,
    Documents,
    file,
    named,
    render,
    workload,
    workloads,
)

LEARNER_S = 240.0
"""An estimate for real models: a step, a publish and a checkpoint."""


def impatient(documents: Documents) -> list[str]:
    """Pods that are killed before they have drained."""
    drains_s = {
        "rollout": ROLLOUT_DRAIN_S,
        "reward": REWARD_DRAIN_S,
        "learner": LEARNER_S,
        "redis": 30.0,
    }
    return checks.impatient(documents, drains_s=drains_s)


Check = Callable[[Documents], list[str]]
CHECKS: tuple[Check, ...] = (
    checks.exposed,
    checks.unrequested,
    checks.unprobed,
    checks.loose_images,
    checks.secrets_in_clear,
    checks.dangling,
    checks.mismatched,
    checks.unset_variables,
    checks.unwritable,
    checks.open_redis,
    impatient,
)


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_nothing_is_wrong_with_an_overlay(check: Check, overlay: str) -> None:
    documents = render(overlay)
    assert {work.labels["app.kubernetes.io/name"] for work in workloads(documents)} == {
        "redis",
        "reward",
        "rollout",
        "learner",
    }
    assert check(documents) == []


@pytest.mark.parametrize("check", CHECKS[:9], ids=lambda check: check.__name__)
def test_nothing_is_wrong_with_the_pod_for_copying(check: Check) -> None:
    claims = [d for d in render("cpu") if d["kind"] == "PersistentVolumeClaim"]
    assert check([*claims, file("loader.yaml")]) == []


def pod(documents: Documents, app: str) -> Document:
    """The pod spec of an app."""
    return workload(documents, app).spec


def container(documents: Documents, app: str) -> Document:
    """The container of an app."""
    return workload(documents, app).container


def spec(documents: Documents, kind: str, name: str) -> Document:
    """The spec of a document."""
    found = named(documents, kind, name)["spec"]
    assert isinstance(found, dict)
    return found


def peers(documents: Documents) -> list[Document]:
    """Whom Redis listens to."""
    found = spec(documents, "NetworkPolicy", "tempsamp-redis")["ingress"][0]["from"]
    assert isinstance(found, list)
    return found


def add_document(documents: Documents, kind: str, **fields: object) -> None:
    """One more document."""
    assert isinstance(documents, list)
    documents.append({"apiVersion": "v1", "kind": kind, "metadata": {"name": "more"}, **fields})


def remove(documents: Documents, kind: str, name: str) -> None:
    """Without a document."""
    assert isinstance(documents, list)
    documents.remove(named(documents, kind, name))


PLAIN = {"name": "TEMPSAMP_TOKEN", "value": "open"}
BROKEN: list[tuple[Check, Callable[[list[Document]], object], str]] = [
    (
        checks.exposed,
        lambda d: container(d, "redis")["securityContext"].pop("readOnlyRootFilesystem"),
        "StatefulSet/tempsamp-redis: read-only root",
    ),
    (
        checks.exposed,
        lambda d: pod(d, "learner")["securityContext"].update(runAsUser=0),
        "JobSet/tempsamp-learner-node: runAsUser",
    ),
    (
        checks.exposed,
        lambda d: container(d, "rollout")["securityContext"].update(capabilities={"add": ["ALL"]}),
        "Deployment/tempsamp-rollout: capabilities",
    ),
    (
        checks.exposed,
        lambda d: pod(d, "reward").pop("automountServiceAccountToken"),
        "Deployment/tempsamp-reward: service account",
    ),
    (
        checks.unrequested,
        lambda d: container(d, "learner")["resources"]["requests"].pop("memory"),
        "JobSet/tempsamp-learner-node: requests memory",
    ),
    (
        checks.unprobed,
        lambda d: container(d, "rollout").pop("startupProbe"),
        "Deployment/tempsamp-rollout: no startupProbe",
    ),
    (
        checks.unprobed,
        lambda d: container(d, "reward")["livenessProbe"]["httpGet"].update(port="rest"),
        "Deployment/tempsamp-reward: livenessProbe at rest",
    ),
    *(
        (
            checks.loose_images,
            lambda d, image=image: container(d, "redis").update(image=image),
            f"StatefulSet/tempsamp-redis: {image}",
        )
        for image in ("redis", "redis:latest", "registry.example/redis:7.4")
    ),
    (
        checks.secrets_in_clear,
        lambda d: add_document(d, "Secret", stringData={"TEMPSAMP_TOKEN": "open"}),
        "Secret/more",
    ),
    (
        checks.secrets_in_clear,
        lambda d: add_document(d, "ConfigMap", data={"run.toml": 'redis_password = "open"\n'}),
        "ConfigMap/more: run.toml",
    ),
    (
        checks.secrets_in_clear,
        lambda d: container(d, "reward")["env"].append(PLAIN),
        "Deployment/tempsamp-reward: TEMPSAMP_TOKEN",
    ),
    (
        checks.secrets_in_clear,
        lambda d: container(d, "redis")["command"].append(
            "--requirepass=$(TEMPSAMP_REDIS_PASSWORD)"
        ),
        "StatefulSet/tempsamp-redis: --requirepass=$(TEMPSAMP_REDIS_PASSWORD)",
    ),
    (
        checks.dangling,
        lambda d: container(d, "learner")["envFrom"][0]["configMapRef"].update(name="other"),
        "JobSet/tempsamp-learner: map other",
    ),
    (
        checks.dangling,
        lambda d: remove(d, "PersistentVolumeClaim", "tempsamp-redis"),
        "StatefulSet/tempsamp-redis: claim tempsamp-redis",
    ),
    (
        checks.dangling,
        lambda d: spec(d, "TriggerAuthentication", "tempsamp-redis")["secretTargetRef"][0].update(
            key="password"
        ),
        "TriggerAuthentication/tempsamp-redis: secret tempsamp-secrets password",
    ),
    (
        checks.mismatched,
        lambda d: spec(d, "Deployment", "tempsamp-reward")["template"]["metadata"]["labels"].update(
            {"app.kubernetes.io/name": "judge"}
        ),
        "Deployment/tempsamp-reward: selector",
    ),
    (
        checks.mismatched,
        lambda d: spec(d, "Service", "tempsamp-rollout")["ports"][0].update(targetPort="rest"),
        "Service/tempsamp-rollout: Deployment/tempsamp-rollout has no port rest",
    ),
    (
        checks.mismatched,
        lambda d: spec(d, "ScaledObject", "tempsamp-rollout")["scaleTargetRef"].update(name="it"),
        "ScaledObject/tempsamp-rollout: chooses nothing",
    ),
    (
        checks.mismatched,
        lambda d: container(d, "learner")["ports"].pop(),
        "PodMonitor/tempsamp: JobSet/tempsamp-learner-node has no port http",
    ),
    (
        checks.unset_variables,
        lambda d: named(d, "ConfigMap", "tempsamp-settings")["data"].pop("MODEL"),
        "JobSet/tempsamp-learner-node: --set=shared.model=$(MODEL)",
    ),
    (
        checks.unwritable,
        lambda d: pod(d, "rollout")["volumes"].pop(),
        "Deployment/tempsamp-rollout: no volume shm",
    ),
    (
        checks.unwritable,
        lambda d: container(d, "rollout")["env"].append({"name": "HF_HOME", "value": "/data"}),
        "Deployment/tempsamp-rollout: HF_HOME=/data is on no writable volume",
    ),
    (checks.open_redis, lambda d: remove(d, "NetworkPolicy", "tempsamp-redis"), "no policy"),
    (checks.open_redis, lambda d: peers(d).append({"podSelector": {}}), "anybody"),
    (
        checks.open_redis,
        lambda d: peers(d).append({"namespaceSelector": {}}),
        "from outside: None",
    ),
    (
        checks.open_redis,
        lambda d: peers(d)[0]["podSelector"]["matchExpressions"][0]["values"].append("reward"),
        "reward",
    ),
    (
        checks.open_redis,
        lambda d: peers(d)[0]["podSelector"]["matchExpressions"][0]["values"].remove("learner"),
        "learner",
    ),
    (
        impatient,
        lambda d: pod(d, "rollout").update(terminationGracePeriodSeconds=30),
        "Deployment/tempsamp-rollout: 30 s, needs more than 30 s",
    ),
    (
        impatient,
        lambda d: pod(d, "learner").pop("terminationGracePeriodSeconds"),
        "JobSet/tempsamp-learner-node: 30 s, needs more than 240 s",
    ),
]


@pytest.mark.parametrize(("check", "break_it", "said"), BROKEN)
def test_a_broken_overlay_is_noticed(
    check: Check, break_it: Callable[[list[Document]], object], said: str
) -> None:
    documents = render("cpu")
    break_it(documents)
    assert said in check(documents)


def test_every_check_has_noticed_something() -> None:
    assert {check for check, _, _ in BROKEN} == set(CHECKS)


def test_the_secret_template_holds_no_value() -> None:
    assert set(file("secret.template.yaml")["stringData"].values()) == {""}
    for kustomization in (ROOT / "deploy").rglob("kustomization.yaml"):
        listed = yaml.safe_load(kustomization.read_text(encoding="utf-8"))
        assert not [f for f in listed.get("resources", ()) if "secret" in f or "loader" in f]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_images_are_of_the_package_version(overlay: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    images = {container["image"] for w in workloads(render(overlay)) for container in w.containers}
    ours = {
        f"tempsamp-{service}:{project['version']}" for service in ("reward", "rollout", "learner")
    }
    assert images - ours == {"redis:7.4"}
    assert file("loader.yaml")["spec"]["containers"][0]["image"] in ours


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_namespace_is_one_and_refuses_what_is_not_restricted(overlay: str) -> None:
    documents = render(overlay)
    (namespace,) = [d for d in documents if d["kind"] == "Namespace"]
    name = namespace["metadata"]["name"]
    assert {d["metadata"].get("namespace", name) for d in documents} == {name}
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    assert file("loader.yaml")["metadata"]["namespace"] == name
    assert file("secret.template.yaml")["metadata"]["namespace"] == name


def test_the_gpu_overlay_gives_each_replica_one_gpu_and_shared_memory() -> None:
    documents = render("gpu")
    for kind in ("requests", "limits"):
        assert container(documents, "rollout")["resources"][kind]["nvidia.com/gpu"] == "1"
    for app in ("rollout", "learner"):
        (shm,) = [v for v in pod(documents, app)["volumes"] if v["name"] == "shm"]
        assert shm["emptyDir"]["medium"] == "Memory"
        mounts = {m["name"]: m["mountPath"] for m in container(documents, app)["volumeMounts"]}
        assert mounts["shm"] == "/dev/shm"


def test_storage_classes_are_named_in_one_place_and_reach_every_claim() -> None:
    claims = [d for d in render("gpu") if d["kind"] == "PersistentVolumeClaim"]
    assert len(claims) == 4
    for claim in claims:
        kind = claim["metadata"]["labels"]["tempsamp.io/storage"]
        assert claim["spec"]["storageClassName"] == kind
        modes = {"disk": ["ReadWriteOnce"], "shared": ["ReadWriteMany"]}
        assert claim["spec"]["accessModes"] == modes[kind]
