"""Log-probabilities over what truncated sampling kept: by hand, their gradient, in a policy."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from common.messages import Float32Array, KeptTokens, Sample, ScoredGroup
from services.learner.batching.batch import MicroBatch, collate
from services.learner.model import policy as policy_module
from services.learner.model.policy import Policy, load_policy
from services.learner.model.scoring import Kept, token_scores
from services.learner.parallel import Ranks
from services.learner.probe import logprob_gap
from tests.fixtures.learner.groups import clip_ref, limits, policy_sample, scored_group
from tests.fixtures.learner.tiny_models import Architecture

LOGITS_TV = torch.tensor([[1.0, 2, 3, 4], [1, 1, 2, 4], [5, 1, 1, 1]], dtype=torch.float64).log()
IDS_T = torch.tensor([1, 3, 0])
KEPT = Kept(torch.tensor([2, 3, 0]), torch.tensor([1, 3, 0, 1, 3], dtype=torch.int32))
"""{1, 3} of the first token, {0, 1, 3} of the second, all of the third."""


def entropy(*probabilities: float) -> float:
    return -math.fsum(p * math.log(p) for p in probabilities)


class TestByHand:
    def test_probabilities_are_those_over_the_kept_ids(self) -> None:
        logprobs_T, entropy_T = token_scores(LOGITS_TV, IDS_T, KEPT)
        assert logprobs_T.exp().tolist() == pytest.approx([2 / 6, 4 / 6, 5 / 8], rel=1e-14)
        wanted = [entropy(2 / 6, 4 / 6), entropy(1 / 6, 1 / 6, 4 / 6), entropy(5 / 8, *[1 / 8] * 3)]
        assert entropy_T.tolist() == pytest.approx(wanted, rel=1e-14)

    def test_the_gradient_is_that_of_the_truncated_policy_and_nothing_of_the_rest(self) -> None:
        logits_TV = LOGITS_TV.clone().requires_grad_()
        token_scores(logits_TV, IDS_T, KEPT)[0][0].backward()  # type: ignore[no-untyped-call]
        assert logits_TV.grad is not None
        assert logits_TV.grad[0].tolist() == pytest.approx([0, 1 - 2 / 6, 0, -4 / 6], rel=1e-14)
        assert not logits_TV.grad[1:].any()

    def test_the_gradient_is_right_everywhere(self) -> None:
        weights_T = torch.tensor([0.5, -2.0, 3.0], dtype=torch.float64)
        scored = lambda z_TV: (token_scores(z_TV, IDS_T, KEPT)[0] * weights_T).sum()  # noqa: E731
        assert torch.autograd.gradcheck(scored, LOGITS_TV.clone().requires_grad_())

    def test_one_kept_id_is_certain(self) -> None:
        one = Kept(torch.ones(3, dtype=torch.int64), IDS_T.int())
        logprobs_T, entropy_T = token_scores(LOGITS_TV, IDS_T, one)
        assert not logprobs_T.any()
        assert not entropy_T.any()

    def test_all_ids_kept_is_no_mask_bit_by_bit(self) -> None:
        everything = Kept(torch.full((3,), 4), torch.arange(4, dtype=torch.int32).repeat(3))
        for found, wanted in zip(
            token_scores(LOGITS_TV, IDS_T, everything),
            token_scores(LOGITS_TV, IDS_T, None),
            strict=True,
        ):
            assert torch.equal(found, wanted)

    @pytest.mark.parametrize("size", [1, 2, 3])
    def test_pieces_are_those_of_the_whole(self, size: int) -> None:
        pieces = zip(
            torch.split(LOGITS_TV, size), torch.split(IDS_T, size), KEPT.split(size), strict=True
        )
        scores = [token_scores(*piece)[0] for piece in pieces]
        assert torch.equal(torch.cat(scores), token_scores(LOGITS_TV, IDS_T, KEPT)[0])

    def test_importance_weights_average_to_one_over_what_could_be_sampled(self) -> None:
        """Over truncated answers the raw ratio is that of no distribution."""
        others_TV = LOGITS_TV[0] + torch.tensor([0.3, -0.2, 0.7, 0.1], dtype=torch.float64)
        ids = torch.tensor([1, 3])
        same = Kept(torch.tensor([2, 2]), torch.tensor([1, 3, 1, 3], dtype=torch.int32))
        old_T, new_T = (
            token_scores(z_V.expand(2, -1), ids, same)[0] for z_V in (LOGITS_TV[0], others_TV)
        )
        raw_T = token_scores(others_TV.expand(2, -1), ids, None)[0]
        assert float((old_T.exp() * (new_T - old_T).exp()).sum()) == pytest.approx(1, rel=1e-14)
        assert float((old_T.exp() * (raw_T - old_T).exp()).sum()) < 0.6


@pytest.fixture(scope="module")
def policy(tiny_model: Callable[[Architecture], Path]) -> Policy:
    return load_policy(tiny_model("qwen3_vl"))


@pytest.fixture(scope="module")
def group(
    policy: Policy, tiny_model: Callable[[Architecture], Path], clip_paths: tuple[Path, Path]
) -> ScoredGroup:
    """Two policy answers that differ in their last token, and an injected one."""
    made = scored_group(
        tiny_model("qwen3_vl"),
        clip_ref(clip_paths[0], architecture="qwen3_vl"),
        video_token_id=policy.model.config.video_token_id,
        answer_lengths=(2, 2, 3),
    )
    samples = (policy_sample((65, 66)), policy_sample((65, 67)), made.samples[2])
    return made.model_copy(update={"samples": samples})


def masked(group: ScoredGroup, *kept: Sequence[Sequence[int]] | None) -> ScoredGroup:
    """The group with these ids of each token of its first answers."""
    samples = list(group.samples)
    for s, rows in enumerate(kept):
        if rows is not None:
            ids = [token for row in rows for token in row]
            tokens = KeptTokens(ids=ids, counts=[*map(len, rows)])
            samples[s] = Sample.model_validate(samples[s].model_dump() | {"kept": tokens})
    return group.model_copy(update={"samples": tuple(samples)})


def micro_batch(group: ScoredGroup) -> MicroBatch:
    (batch,) = collate([group], [[1.0, -2.0, 1.0]], limits=limits()).micro_batches
    return batch


def scores_SR(policy: Policy, group: ScoredGroup) -> Tensor:
    with torch.no_grad():
        scores: Tensor = policy(micro_batch(group)).logprobs_GSR[0]
    return scores


class TestInAPolicy:
    def test_an_answer_without_a_mask_brings_nothing(self, group: ScoredGroup) -> None:
        batch = micro_batch(group)
        assert batch.kept_counts_GSR is None
        assert batch.kept_ids_N is None

    def test_each_token_is_scored_over_its_own_ids_and_other_answers_are_not_touched(
        self, policy: Policy, group: ScoredGroup
    ) -> None:
        raw_SR = scores_SR(policy, group)
        found_SR = scores_SR(policy, masked(group, [[65, 3], [66, 67]]))
        both = torch.stack([raw_SR[0, 1], raw_SR[1, 1]]).double()
        assert float(found_SR[0, 1]) == pytest.approx(float(both[0] - both.logsumexp(0)), abs=1e-6)
        assert float(found_SR[0, 0]) > float(raw_SR[0, 0]) + 1
        assert torch.equal(found_SR[1:], raw_SR[1:])

    def test_all_ids_of_the_vocabulary_are_no_mask(
        self, policy: Policy, group: ScoredGroup
    ) -> None:
        everything = [[*range(policy.model.lm_head.out_features)]] * 2
        raw_SR = scores_SR(policy, group)
        assert torch.equal(scores_SR(policy, masked(group, everything, everything)), raw_SR)

    def test_gradients_in_pieces_are_those_of_the_whole(
        self, policy: Policy, group: ScoredGroup, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        batch = micro_batch(masked(group, [[65, 3], [66, 67, 1]], [[65], [2, 67]]))

        def gradient() -> Tensor:
            policy.zero_grad()
            scores = policy(batch)
            (scores.logprobs_GSR * batch.advantages_GS[..., None]).sum().backward()
            trained = [p.grad.flatten() for p in policy.parameters() if p.grad is not None]
            return torch.cat(trained)

        whole = gradient()
        vocabulary = policy.model.lm_head.out_features
        monkeypatch.setattr(policy_module, "MAX_LOGITS", 4 * vocabulary)  # two tokens a piece
        assert float((gradient() - whole).norm() / whole.norm()) < 1e-6

    def test_an_unknown_id_is_a_fault(self, policy: Policy, group: ScoredGroup) -> None:
        strange = masked(group, [[65], [66, 10**6]])
        (fault,) = policy.group_faults([strange]).values()
        assert "to 1000000, wanted 0 to" in fault


def test_the_parity_gate_compares_what_engine_and_learner_both_kept(
    policy: Policy, group: ScoredGroup, ranks: Ranks
) -> None:
    """Log-probabilities of truncated sampling differ from raw ones by nats: the mask explains."""
    rows = [[65, 3], [66, 67]], [[65, 9], [67, 1]]
    wanted_SR = scores_SR(policy, masked(group, *rows)).tolist()
    samples = [
        sample.model_copy(update={"logprobs": Float32Array(wanted_SR[s][:2])})
        for s, sample in enumerate(masked(group, *rows).samples[:2])
    ]
    probe = group.model_copy(
        update={"samples": tuple(samples), "verdicts": group.verdicts[:2], "prompt_id": "probe"}
    )
    assert logprob_gap(policy, probe, ranks=ranks, max_nats=1e-4).max_nats < 1e-5
    blind = [sample.model_copy(update={"kept": None}) for sample in samples]
    probe = probe.model_copy(update={"samples": tuple(blind)})
    assert logprob_gap(policy, probe, ranks=ranks, max_nats=1e-4).max_nats > 1
