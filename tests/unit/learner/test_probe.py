"""Engine against learner at one version: equal, planted gaps, and what the run is told."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from common.config import Run
from common.errors import ParityError
from common.messages import Float32Array, ScoredGroup
from services.learner.batching.batch import collate
from services.learner.model.policy import Policy, load_policy
from services.learner.parallel import Ranks
from services.learner.probe import BOUNDS, Gap, disagreement, logprob_gap
from tests.fixtures.learner.groups import clip_ref, limits, scored_group
from tests.fixtures.learner.tiny_models import Architecture


@pytest.fixture
def policy(tiny_model: Callable[[Architecture], Path]) -> Policy:
    return load_policy(tiny_model("qwen3_vl"))


@pytest.fixture
def group(
    policy: Policy, tiny_model: Callable[[Architecture], Path], clip_paths: tuple[Path, Path]
) -> ScoredGroup:
    """Answers with the log-probabilities that the policy itself gives them."""
    group = scored_group(
        tiny_model("qwen3_vl"),
        clip_ref(clip_paths[0], architecture="qwen3_vl"),
        video_token_id=policy.model.config.video_token_id,
        answer_lengths=(4, 3),
        injected=False,
    )
    (batch,) = collate([group], [[0.0, 0.0]], limits=limits()).micro_batches
    with torch.no_grad():
        logprobs_SR = policy(batch).logprobs_GSR[0]
    samples = tuple(
        sample.model_copy(
            update={"logprobs": Float32Array(logprobs_SR[s, : len(sample.token_ids)].tolist())}
        )
        for s, sample in enumerate(group.samples)
    )
    return group.model_copy(update={"samples": samples})


def run(**learner: object) -> Run:
    return Run.model_validate(
        {
            "shared": {"run_id": "a", "model": "m"},
            "learner": {"rows": "rows.jsonl", "run_dir": "run", "steps": 1, **learner},
        }
    )


def planted(group: ScoredGroup, *, nats: float) -> ScoredGroup:
    """One token of the second answer is off."""
    first, second = group.samples
    logprobs = list(second.logprobs)
    logprobs[1] += nats
    changed = second.model_copy(update={"logprobs": Float32Array(logprobs)})
    return group.model_copy(update={"samples": (first, changed)})


def test_equal_forward_passes_agree(policy: Policy, group: ScoredGroup, ranks: Ranks) -> None:
    gap = logprob_gap(policy, group, ranks=ranks, max_nats=1e-2)
    assert gap.num_tokens == 7
    assert gap.max_nats < 1e-5
    assert disagreement(gap, run=run(), version=0, replica="a") is None


def test_one_token_off_ends_the_run_and_names_causes(
    policy: Policy, group: ScoredGroup, ranks: Ranks
) -> None:
    gap = logprob_gap(policy, planted(group, nats=-0.7), ranks=ranks, max_nats=1e-2)
    assert gap.max_nats == pytest.approx(0.7, abs=1e-5)
    assert gap.mean_nats == pytest.approx(0.1, abs=1e-5)
    assert gap.share_beyond == pytest.approx(1 / 7)
    error = disagreement(gap, run=run(), version=20, replica="http://a:1")
    assert isinstance(error, ParityError)
    for word in (
        *("version 20", "http://a:1", "0.1 nats in the mean", "0.7 at most", "7 tokens"),
        *("0.001 (learner.probe_mean_gap_nats)", "0.01 (learner.probe_max_gap_nats)", "float32"),
        *("other weights", "shared.dtype", "top_p 1", "image processor", "attention kernel"),
    ):
        assert word.replace("attention kernel", "linear-attention kernel") in str(error)
    assert "\n" not in str(error)


def test_the_mean_counts_by_itself() -> None:
    gap = Gap(max_nats=0.009, mean_nats=0.002, num_tokens=9, share_beyond=0.0)
    assert disagreement(gap, run=run(), version=0, replica="a") is not None
    assert disagreement(gap, run=run(probe_mean_gap_nats=0.01), version=0, replica="a") is None


def test_what_is_no_number_is_beyond_every_bound(
    policy: Policy, group: ScoredGroup, ranks: Ranks
) -> None:
    with torch.no_grad():
        policy.model.lm_head.weight[0, 0] = float("nan")
    gap = logprob_gap(policy, group, ranks=ranks, max_nats=1e-2)
    assert gap.max_nats == float("inf")
    settings = run(probe_max_gap_nats=1e9, probe_mean_gap_nats=1e9)
    assert disagreement(gap, run=settings, version=0, replica="a") is not None


def test_bounds_follow_the_dtype() -> None:
    assert BOUNDS["bfloat16"][0] > 0.6, "Qwen3.5 in bfloat16 differs by that with equal weights"
    gap = Gap(max_nats=0.6, mean_nats=0.05, num_tokens=9, share_beyond=0.0)
    half = Run.model_validate(
        {
            "shared": {"run_id": "a", "model": "m", "dtype": "bfloat16"},
            "learner": {"rows": "rows.jsonl", "run_dir": "run", "steps": 1},
        }
    )
    assert disagreement(gap, run=half, version=0, replica="a") is None
    assert disagreement(gap, run=run(), version=0, replica="a") is not None
