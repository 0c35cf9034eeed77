"""A step on answers of truncated sampling: what is refused of them, its figures, its replay."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from common import config
from common.config import Run
from common.messages import Float32Array, KeptTokens, Sample, ScoredGroup
from common.video.frames import load_frames
from services.learner.batching.batch import collate
from services.learner.model.policy import load_policy
from services.learner.parallel import Ranks
from services.learner.share import Share, unmasked
from services.learner.step import Stepper
from services.learner.watching.replay import replay
from tests.fixtures.learner.groups import clip_ref, limits, scored_group
from tests.fixtures.learner.tiny_models import Architecture

OTHERS = (3, 9)
"""Ids kept beside each token that was chosen."""


@pytest.fixture(scope="module")
def model(tiny_model: Callable[[Architecture], Path]) -> Path:
    return tiny_model("qwen3_vl")


@pytest.fixture
def run(model: Path, clip_paths: tuple[Path, Path], tmp_path: Path) -> Run:
    document: dict[str, Any] = {
        "shared": {"run_id": "r", "model": str(model), "sampling": {"top_p": 0.85, "top_k": 3}},
        "rollout": {"device": "cuda"},
        "learner": {"rows": "none", "run_dir": str(tmp_path), "steps": 1},
    }
    document["shared"]["video"] = {"roots": [str(clip_paths[0].parent)]}
    document["learner"]["dump_steps"] = {"every": 1}
    return config.parse(document, environ={})


@pytest.fixture
def share(run: Run, model: Path, ranks: Ranks) -> Share:
    return Share(run, ranks, load_policy(model))


@pytest.fixture
def raw(share: Share, model: Path, clip_paths: tuple[Path, Path]) -> ScoredGroup:
    """Three policy answers and an injected one, without masks."""
    return scored_group(
        model,
        clip_ref(clip_paths[0], architecture="qwen3_vl"),
        video_token_id=share.policy.model.config.video_token_id,
        answer_lengths=(3, 5, 4, 2),
    )


@pytest.fixture
def group(share: Share, raw: ScoredGroup) -> ScoredGroup:
    """As an engine with masks answers at the policy's weights."""
    policy_samples = [_masked(sample) for sample in raw.samples[:3]]
    group = raw.model_copy(update={"samples": (*policy_samples, raw.samples[3])})
    (batch,) = collate([group], [[0.0] * 4], limits=limits()).micro_batches
    with torch.no_grad():
        scores_SR = share.policy(batch).logprobs_GSR[0].tolist()
    samples = [
        sample.model_copy(update={"logprobs": Float32Array(scores[: len(sample.token_ids)])})
        for sample, scores in zip(policy_samples, scores_SR, strict=False)
    ]
    return group.model_copy(update={"samples": (*samples, raw.samples[3])})


def _masked(sample: Sample) -> Sample:
    rows = [sorted({token, *OTHERS}) for token in sample.token_ids]
    ids = [token for row in rows for token in row]
    kept = KeptTokens(ids=ids, counts=[*map(len, rows)])
    return Sample.model_validate(sample.model_dump() | {"kept": kept})


def step(share: Share, group: ScoredGroup) -> tuple[Stepper, dict[str, float]]:
    stepper = Stepper.of(
        share.run,
        share.policy,
        start=Path(share.run.shared.model),
        ranks=share.ranks,
        load_frames=load_frames,
    )
    return stepper, stepper.step(share.collate([group], limits=limits()), number=1)


def test_ratios_and_gaps_are_those_of_the_distribution_that_was_sampled(
    share: Share, group: ScoredGroup
) -> None:
    assert share.agreed_faults([group], limits=limits()) == {}
    _, figures = step(share, group)
    assert figures["learner/logprob_gap_max_nats"] < 1e-5
    assert figures["learner/importance_weight_mean"] == pytest.approx(1.0, abs=1e-5)
    assert figures["learner/importance_effective_share"] == pytest.approx(1.0, abs=1e-5)
    assert 0 < figures["learner/entropy_nats"] < torch.tensor(3.0).log()
    assert figures["learner/updates"] == 1


def test_without_masks_such_answers_would_weigh_next_to_nothing(
    share: Share, group: ScoredGroup
) -> None:
    samples = tuple(sample.model_copy(update={"kept": None}) for sample in group.samples)
    _, figures = step(share, group.model_copy(update={"samples": samples}))
    assert figures["learner/logprob_gap_mean_nats"] > 1
    assert figures["learner/importance_weight_mean"] < 0.5


def test_they_are_refused_and_the_replica_is_named(share: Share, raw: ScoredGroup) -> None:
    faults = share.agreed_faults([raw], limits=limits())
    assert list(faults) == [raw.prompt_id]
    fault = faults[raw.prompt_id]
    assert fault.startswith("found answers of replica replica-a without the mask")
    assert "top_p is 0.85 and top_k 3 while learner.loss.correction is 'token_truncate'" in fault


@pytest.mark.parametrize("changed", [{"shared": "whole"}, {"learner": "off"}])
def test_whole_distributions_and_uncorrected_runs_need_no_mask(
    run: Run, raw: ScoredGroup, changed: dict[str, str]
) -> None:
    document = run.model_dump(mode="json")
    if "shared" in changed:
        document["shared"]["sampling"] = {}
    else:
        document["learner"]["loss"] = {"correction": "off"}
    assert unmasked([raw], run=Run.model_validate(document)) == {}


def test_the_step_is_dumped_with_its_masks_and_replayed(
    share: Share, group: ScoredGroup, model: Path, tmp_path: Path
) -> None:
    stepper, figures = step(share, group)
    advantages = share.advantages([group]).by_group
    stepper.dumps.finish(1, groups=[group], advantages=advantages, figures=figures, world_size=1)
    found = list(replay(tmp_path / "steps/step-000001", model=model))
    assert [quantity for quantity in found if not quantity.agrees] == []
    (logprobs,) = [item for item in found if item.name.endswith(": log-probabilities")]
    assert logprobs.difference < 1e-5
