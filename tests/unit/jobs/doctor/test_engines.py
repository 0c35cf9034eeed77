"""Engine against learner: what logs and steps prove, and what a ring that ends says.

The ring itself runs in tests/ring/test_doctor.py.
"""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from common import config
from common.config import Run
from common.model.architecture import architecture_of
from jobs.doctor import engines
from jobs.doctor.engines import Comparison, Outcome
from jobs.doctor.machine import Gpu
from tests.fixtures.pages.documents import ROOT

Make = Callable[..., Run]
COMPARED = tuple(Comparison(version, 1e-6, 1e-7, 60) for version in range(engines.STEPS + 1))
MOVED = (2.0, 1.5)
RECIPES = sorted((ROOT / "deploy/configs").glob("*_*.toml"))


def levels(outcome: Outcome, run: Run) -> dict[str, str]:
    return {one.name: one.level for one in engines.findings(outcome, run=run)}


def test_all_comparisons_prove_ids_values_and_caches(make_run: Make) -> None:
    assert levels(Outcome(COMPARED, MOVED), make_run()) == {
        "token ids, visual tokens, grid": "ok",
        "log-probabilities": "ok",
        "caches after an update": "ok",
    }


def test_adapters_are_proven_where_the_run_trains_them(make_run: Make) -> None:
    found = levels(Outcome(COMPARED, MOVED), make_run("learner.lora.rank=4"))
    assert found["adapters"] == "ok"


def test_a_trained_tower_is_named(make_run: Make) -> None:
    run = make_run("learner.freeze_vision=false")
    (found,) = (
        one for one in engines.findings(Outcome(COMPARED, MOVED), run=run) if "caches" in one.name
    )
    assert found.found.startswith("keys and clip features of old weights are dropped")


def test_weights_that_did_not_move_prove_nothing(make_run: Make) -> None:
    assert levels(Outcome(COMPARED, (0.0, 0.0)), make_run())["caches after an update"] == "fail"


def test_a_comparison_that_never_came_fails(make_run: Make) -> None:
    (found,) = engines.findings(Outcome(COMPARED[:-1], MOVED), run=make_run())
    assert (found.level, found.found.startswith("2 of 3 comparisons")) == ("fail", True)


def test_a_ring_that_ended_is_quoted() -> None:
    said = (
        "learner ended with code 1; /tmp/x/learner.log closes with:\n"
        '{"event": "step"}\n'
        "tempsamp: ParityError: version 1: the log-probabilities of replica http://a and of this "
        "learner differ by 3 nats in the mean\n"
    )
    found = engines.failure(said)
    assert found.level == "fail"
    assert found.found.startswith("ParityError: version 1: the log-probabilities")
    plain = engines.failure("rollout was killed by SIGKILL; its log closes with:\na\nb\nc")
    assert plain.found == "rollout was killed by SIGKILL; its log closes with: b c"


def test_comparisons_are_read_from_a_learners_log() -> None:
    line = {
        "event": engines.COMPARED,
        "policy_version": 1,
        "num_tokens": 60,
        "learner/probe_logprob_gap_nats": 1e-6,
        "learner/probe_logprob_gap_mean_nats": 1e-7,
    }
    log = "\n".join(["Loading weights", json.dumps({"event": "step"}), json.dumps(line), '{"eve'])
    assert engines.comparisons(log) == [COMPARED[1]]


def test_the_ring_of_the_doctor_touches_nothing_of_the_run(make_run: Make, tmp_path: Path) -> None:
    run = make_run("learner.probe_every=0", "shared.strategy=none")
    changed = engines.settings(
        run,
        rows=tmp_path / "rows.jsonl",
        folder=tmp_path,
        redis_url="redis://127.0.0.1:7000/0",
        reward_url="http://127.0.0.1:7001",
    )
    made = config.load(ROOT / "deploy/configs/demo.toml", overrides=changed)
    assert made.shared.run_id.startswith("doctor-")
    assert made.shared.redis_url != run.shared.redis_url
    assert made.learner.run_dir == tmp_path / "run"
    # A gradient in every step, a comparison after each, no checkpoint.
    assert made.shared.strategy == "sft"
    assert (made.learner.probe_every, made.learner.checkpoint_every) == (1, 0)
    assert made.learner.steps > engines.STEPS


CUDA = ("learner.device=cuda", "rollout.device=cuda", "shared.dtype=bfloat16")
TINY = architecture_of(str(ROOT / "deploy/tiny-qwen3vl"))
H20 = Gpu("NVIDIA H20", 96 * 10**9, "580.95.05")


@pytest.fixture
def _all_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.usefixtures("_all_visible")
@pytest.mark.parametrize(("gpus", "is_enough"), [(0, False), (1, False), (2, True)])
def test_too_few_gpus_are_said(make_run: Make, gpus: int, is_enough: bool) -> None:
    found = engines.room(make_run(*CUDA), architecture=TINY, gpus=[H20] * gpus)
    assert (found is None) == is_enough
    assert engines.room(make_run(), architecture=TINY, gpus=[]) is None


def test_gpus_that_are_not_visible_do_not_count(
    make_run: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    found = engines.room(make_run(*CUDA), architecture=TINY, gpus=[H20] * 8)
    assert found is not None
    assert found.found == "not compared: 1 GPUs here, a rank and a replica want 2"


@pytest.mark.usefixtures("_all_visible")
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_are_compared_on_a_node_and_not_beside_one_card(path: Path) -> None:
    run = config.load(path)
    architecture = architecture_of(run.shared.model)
    assert engines.room(run, architecture=architecture, gpus=[H20] * 8) is None
    found = engines.room(run, architecture=architecture, gpus=[H20] * 2)
    assert found is not None
    assert found.level == "warn"
    assert "a rank of 1 beside a replica takes about 1" in found.found
    assert found.found.endswith("GB, and a card has 88.3")
    assert "--no-engines" in found.cure


@pytest.mark.usefixtures("_all_visible")
def test_the_learner_gets_a_rank_a_gpu_that_the_replica_leaves(make_run: Make) -> None:
    wide = make_run(*CUDA, "learner.groups_per_step=16", "rollout.tensor_parallel=2")
    assert engines.ranks(wide, gpus=8) == 6
    assert engines.ranks(make_run(*CUDA, "learner.groups_per_step=4"), gpus=8) == 4
    assert engines.ranks(make_run("learner.groups_per_step=4"), gpus=8) == 1


@pytest.mark.parametrize(
    ("visible", "learners"),
    [(None, "1,2,3"), ("4,5,6", "5,6"), ("GPU-a,GPU-b", "GPU-b"), ("3, 4,-1", "4")],
)
def test_the_learner_gets_the_gpus_behind_those_of_the_replica(
    make_run: Make, monkeypatch: pytest.MonkeyPatch, visible: str | None, learners: str
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    run = make_run(*CUDA, "learner.groups_per_step=3")
    assert engines.cards(run, gpus=8) == {"CUDA_VISIBLE_DEVICES": learners}
    assert engines.cards(make_run(), gpus=8) == {}
