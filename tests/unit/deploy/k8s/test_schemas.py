"""Every document fits its published schema, ours of KEDA, JobSet and the Prometheus operator too.

Core kinds are held against the schemas of two Kubernetes versions (kubernetes-validate, unknown
fields refused). Of the custom kinds, the fields that we use are restated here; what they embed of
core kinds (a Job, an autoscaler's behavior) is held against those.
"""

import copy
from collections.abc import Callable
from typing import Any

import jsonschema
import kubernetes_validate
import pytest

from tests.fixtures.deploy.manifests import OVERLAYS, Document, file, named, render

OLDEST, NEWEST = "1.31", "1.37"
STRING, FLAG = {"type": "string", "minLength": 1}, {"type": "boolean"}
COUNT, POSITIVE = {"type": "integer", "minimum": 0}, {"type": "integer", "minimum": 1}

Schema = dict[str, Any]


def fields(required: dict[str, Schema], **optional: Schema) -> Schema:
    """An object with these fields and no other."""
    return {
        "type": "object",
        "properties": {**required, **optional},
        "required": list(required),
        "additionalProperties": False,
    }


def choice(*values: str) -> Schema:
    """One of these strings."""
    return {"enum": list(values)}


def several(item: Schema) -> Schema:
    """A list with at least one item."""
    return {"type": "array", "items": item, "minItems": 1}


TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
METADATA = fields({"name": STRING, "namespace": STRING}, labels=TEXTS, annotations=TEXTS)
ANYTHING: Schema = {"type": "object"}
"""Held against the schema of a core kind."""
TRIGGER = fields(
    {"type": STRING, "metadata": TEXTS},
    name=STRING,
    metricType=choice("AverageValue", "Value", "Utilization"),
    authenticationRef=fields({"name": STRING}),
)
SPECS: dict[str, tuple[str, Schema]] = {
    "ScaledObject": (
        "keda.sh/v1alpha1",
        fields(
            {
                "scaleTargetRef": fields({"name": STRING}, apiVersion=STRING, kind=STRING),
                "triggers": several(TRIGGER),
            },
            pollingInterval=POSITIVE,
            minReplicaCount=COUNT,
            maxReplicaCount=POSITIVE,
            advanced=fields({}, horizontalPodAutoscalerConfig=fields({}, behavior=ANYTHING)),
        ),
    ),
    "TriggerAuthentication": (
        "keda.sh/v1alpha1",
        fields(
            {
                "secretTargetRef": several(
                    fields({"parameter": STRING, "name": STRING, "key": STRING})
                )
            }
        ),
    ),
    "JobSet": (
        "jobset.x-k8s.io/v1alpha2",
        fields(
            {
                "replicatedJobs": several(
                    fields(
                        {"name": STRING, "template": fields({"spec": ANYTHING}, metadata=ANYTHING)},
                        replicas=POSITIVE,
                    )
                )
            },
            network=fields(
                {}, enableDNSHostnames=FLAG, subdomain=STRING, publishNotReadyAddresses=FLAG
            ),
            failurePolicy=fields(
                {},
                maxRestarts=COUNT,
                restartStrategy=choice("Recreate", "BlockingRecreate", "InPlaceRestart"),
                rules=several(
                    fields(
                        {
                            "name": {
                                "type": "string",
                                "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$",
                            },
                            "action": choice(
                                "FailJobSet",
                                "RestartJobSet",
                                "RestartJobSetAndIgnoreMaxRestarts",
                                "RestartJob",
                                "RestartJobAndIgnoreMaxRestarts",
                            ),
                        },
                        onJobFailureReasons=several(
                            choice(
                                "BackoffLimitExceeded",
                                "DeadlineExceeded",
                                "FailedIndexes",
                                "MaxFailedIndexesExceeded",
                                "PodFailurePolicy",
                            )
                        ),
                        targetReplicatedJobs=several(STRING),
                    )
                ),
            ),
        ),
    ),
    "PodMonitor": (
        "monitoring.coreos.com/v1",
        fields(
            {
                "selector": ANYTHING,
                "podMetricsEndpoints": several(
                    fields(
                        {"port": STRING},
                        path={"type": "string", "pattern": "^/"},
                        interval={"type": "string", "pattern": "^[0-9]+(ms|s|m|h)$"},
                        authorization=fields(
                            {"credentials": fields({"name": STRING, "key": STRING})}, type=STRING
                        ),
                    )
                ),
            }
        ),
    ),
}
"""Kind → its API version and the schema of its spec, as far as we use it."""
TRIGGERS = {
    "redis-streams": fields(
        {
            "address": {"type": "string", "pattern": r"^[^:/]+:\d+$"},
            "stream": STRING,
            "consumerGroup": STRING,
            "lagCount": {"type": "string", "pattern": r"^[1-9]\d*$"},
        },
        databaseIndex={"type": "string", "pattern": r"^\d+$"},
    ),
    "prometheus": fields(
        {
            "serverAddress": {"type": "string", "pattern": "^https?://"},
            "query": STRING,
            "threshold": {"type": "string", "pattern": r"^\d+(\.\d+)?$"},
        },
        ignoreNullValues=choice("true", "false"),
    ),
}
"""Scaler → its metadata, all strings."""


def problem(document: Document) -> str | None:
    """The first thing wrong with a document; None: it fits."""
    try:
        if document["kind"] not in SPECS:
            for version in (OLDEST, NEWEST):
                kubernetes_validate.validate(document, version, strict=True)
            return None
        version, spec = SPECS[document["kind"]]
        shape = {
            "apiVersion": {"const": version},
            "kind": STRING,
            "metadata": METADATA,
            "spec": spec,
        }
        jsonschema.validate(document, fields(shape))
    except jsonschema.ValidationError as error:  # also what kubernetes-validate raises
        return f"{'.'.join(map(str, error.absolute_path))}: {error.message}"
    if document["kind"] == "ScaledObject":
        return problem_of_scaling(document)
    if document["kind"] == "JobSet":
        jobs = (job["template"]["spec"] for job in document["spec"]["replicatedJobs"])
        return next(filter(None, (problem(core("Job", "batch/v1", spec)) for spec in jobs)), None)
    return None


def problem_of_scaling(document: Document) -> str | None:
    """What KEDA's own schema leaves open: metadata of triggers, behavior of the autoscaler."""
    spec = document["spec"]
    for trigger in spec["triggers"]:
        try:
            jsonschema.validate(trigger["metadata"], TRIGGERS[trigger["type"]])
        except jsonschema.ValidationError as error:
            return f"{trigger['type']}: {error.message}"
    behavior = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "any"}
    autoscaler = {"scaleTargetRef": target, "maxReplicas": 1, "behavior": behavior}
    return problem(core("HorizontalPodAutoscaler", "autoscaling/v2", autoscaler))


def core(kind: str, version: str, spec: Document) -> Document:
    """A document of a core kind around a spec."""
    return {"apiVersion": version, "kind": kind, "metadata": {"name": "any"}, "spec": spec}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_documents_fit_their_schemas(overlay: str) -> None:
    documents = render(overlay)
    assert len(documents) >= 15
    found = {f"{d['kind']}/{d['metadata']['name']}": problem(d) for d in documents}
    assert {name: wrong for name, wrong in found.items() if wrong is not None} == {}


@pytest.mark.parametrize("name", ["loader.yaml", "secret.template.yaml"])
def test_documents_beside_the_overlays_fit_too(name: str) -> None:
    assert problem(file(name)) is None


def _trigger(index: int, key: str, value: object) -> Callable[[Document], None]:
    return lambda spec: spec["triggers"][index]["metadata"].update({key: value})


BROKEN: list[tuple[str, str, Callable[[Document], object], str]] = [
    ("Deployment", "tempsamp-rollout", lambda spec: spec.update(replica=1), "replica"),
    ("StatefulSet", "tempsamp-redis", lambda spec: spec.update(replicas="one"), "replicas"),
    ("NetworkPolicy", "tempsamp-redis", lambda spec: spec["ingress"][0].update({"to": []}), "'to'"),
    ("ScaledObject", "tempsamp-rollout", lambda spec: spec.update(minReplicas=1), "minReplicas"),
    ("ScaledObject", "tempsamp-rollout", lambda spec: spec.pop("triggers"), "'triggers' is a"),
    ("ScaledObject", "tempsamp-rollout", _trigger(0, "lagCount", 4), "4 is not of type 'string'"),
    ("ScaledObject", "tempsamp-rollout", _trigger(0, "lagCount", "0"), "redis-streams: '0'"),
    ("ScaledObject", "tempsamp-rollout", _trigger(0, "lag", "4"), "redis-streams: Additional"),
    ("ScaledObject", "tempsamp-rollout", _trigger(1, "threshold", "a fifth"), "prometheus: 'a fi"),
    (
        "ScaledObject",
        "tempsamp-rollout",
        lambda spec: spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"].update(up={}),
        "behavior",
    ),
    ("JobSet", "tempsamp-learner", lambda spec: spec["network"].update(dns=True), "'dns'"),
    (
        "JobSet",
        "tempsamp-learner",
        lambda spec: spec["failurePolicy"].update(restartStrategy="Never"),
        "'Never'",
    ),
    (
        "JobSet",
        "tempsamp-learner",
        lambda spec: spec["replicatedJobs"][0]["template"]["spec"].update(parallel=2),
        "'parallel'",
    ),
    ("TriggerAuthentication", "tempsamp-redis", lambda spec: spec.update(env=[]), "'env'"),
    ("PodMonitor", "tempsamp", lambda spec: spec.update(podMetricsEndpoints=[]), "[]"),
]


@pytest.mark.parametrize(("kind", "name", "break_it", "said"), BROKEN)
def test_a_document_that_does_not_fit_is_noticed(
    kind: str, name: str, break_it: Callable[[Document], object], said: str
) -> None:
    document = copy.deepcopy(named(render("cpu"), kind, name))
    assert problem(document) is None
    break_it(document["spec"])
    assert said in str(problem(document))
