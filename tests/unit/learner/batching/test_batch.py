"""Groups → micro-batches: padding, left-out samples, and the split over ranks."""

import pytest
import torch

from common.messages import PACKED, Scored, ScoredGroup, Timings
from services.learner.batching.batch import IDLE, MicroBatch, collate, faults, shares
from services.learner.batching.plan import _planned
from tests.fixtures.learner.groups import injected_sample, limits, made_up_clip, policy_sample


def group(name: str, *, prompt_tokens: int = 4, answers: tuple[int, ...] = (2, 3)) -> ScoredGroup:
    """Policy answers of these lengths, then an injected one of two tokens."""
    samples = [policy_sample([10 + n] * n, logprob=-0.5 * n) for n in answers]
    samples.append(injected_sample([7, 8]))
    return ScoredGroup(
        prompt_id=name,
        row_id=name,
        epoch=0,
        mode="answer",
        clip=made_up_clip(name),
        prompt_token_ids=tuple(range(prompt_tokens)),
        num_visual_tokens=1,
        grid_thw=(1, 2, 2),
        samples=tuple(samples),
        verdicts=tuple(Scored(reward=0.0, parts={}) for _ in samples),
        replica="r",
        timings=Timings(decode_s=0, generate_s=0, score_s=0),
    )


def test_answers_are_padded_and_masked() -> None:
    batch = collate([group("a")], [[0.5, -0.5, 1.0]], limits=limits())
    (micro_batch,) = batch.micro_batches
    assert micro_batch.prompt_ids_GP.tolist() == [[0, 1, 2, 3]]
    assert micro_batch.answer_ids_GSR.tolist() == [[[12, 12, 0], [13, 13, 13], [7, 8, 0]]]
    assert micro_batch.answer_mask_GSR.sum(-1).tolist() == [[2, 3, 2]]
    assert micro_batch.advantages_GS.tolist() == [[0.5, -0.5, 1.0]]
    assert micro_batch.rollout_logprobs_GSR.tolist() == [
        [[-1.0, -1.0, 0.0], [-1.5, -1.5, -1.5], [0.0, 0.0, 0.0]]
    ]
    assert micro_batch.is_policy_GS.tolist() == [[True, True, False]]
    assert [clip.uri for clip in micro_batch.clips] == ["a"]
    assert (batch.num_tokens, batch.num_sequences) == (7, 3)


def test_sample_without_advantage_is_left_out_and_its_group_padded() -> None:
    batch = collate(
        [group("a"), group("b")],
        [[0.5, -0.5, 1.0], [None, 0.25, -0.25]],
        limits=limits(),
    )
    (micro_batch,) = batch.micro_batches
    assert micro_batch.answer_mask_GSR.sum(-1).tolist() == [[2, 3, 2], [3, 2, 0]]
    assert micro_batch.advantages_GS[1].tolist() == [0.25, -0.25, 0.0]
    assert micro_batch.is_policy_GS[1].tolist() == [True, False, False]
    assert (batch.num_tokens, batch.num_sequences) == (12, 5)


def test_group_without_any_advantage_is_left_out() -> None:
    batch = collate([group("a"), group("b")], [[None] * 3, [0.0, 0.0, 0.0]], limits=limits())
    assert [clip.uri for micro in batch.micro_batches for clip in micro.clips] == ["b"]
    assert batch.num_tokens == 7


def test_a_step_without_any_advantage_is_refused() -> None:
    with pytest.raises(ValueError, match="no sample to train on in 1 group"):
        collate([group("a")], [[None] * 3], limits=limits())


def test_unequal_prompts_share_a_micro_batch_while_tokens_last() -> None:
    groups = [group(f"{i}", prompt_tokens=3 + i % 2) for i in range(6)]
    (whole,) = collate(groups, [[0.0] * 3] * 6, limits=limits()).micro_batches
    assert whole.prompt_tokens == (3, 3, 3, 4, 4, 4)
    assert whole.prompt_ids_GP.tolist() == [[0, 1, 2, 0]] * 3 + [[0, 1, 2, 3]] * 3
    assert whole.answer_tokens == ((2, 3, 2),) * 6
    halves = collate(groups, [[0.0] * 3] * 6, limits=limits(24)).micro_batches
    assert [len(micro.prompt_tokens) for micro in halves] == [3, 3]


def test_a_group_that_is_too_large_is_named_with_what_would_fit() -> None:
    groups = [group("a"), group("b", prompt_tokens=30, answers=(9, 4))]
    found = faults(groups, [[1.0] * 3] * 2, max_tokens=37)
    assert found.keys() == {"b"}
    assert "found 30 prompt tokens and an answer of 9, wanted at most 37" in found["b"]
    assert "set learner.max_tokens_per_rank to 38" in found["b"]
    assert faults(groups, [[1.0] * 3] * 2, max_tokens=38) == {}
    assert faults(groups, [[1.0] * 3, [None, 1.0, 1.0]], max_tokens=37) == {}


def plans(groups: list[ScoredGroup], world_size: int) -> list[tuple[MicroBatch, ...]]:
    return [
        collate(
            groups,
            [[1.0] * 3] * len(groups),
            limits=limits(),
            rank=rank,
            world_size=world_size,
        ).micro_batches
        for rank in range(world_size)
    ]


def working(plan: tuple[MicroBatch, ...]) -> list[str]:
    """Groups that a rank trains on."""
    return [
        clip.uri
        for micro in plan
        for g, clip in enumerate(micro.clips)
        if micro.answer_mask_GSR[g].any()
    ]


def test_ranks_share_all_groups_once_and_run_equally_many_micro_batches() -> None:
    groups = [group(f"{i}", prompt_tokens=3 + 10 * (i % 3)) for i in range(7)]
    shares = plans(groups, world_size=3)
    assert len({len(plan) for plan in shares}) == 1
    assert sorted(uri for plan in shares for uri in working(plan)) == [str(i) for i in range(7)]


def test_load_is_balanced_by_tokens() -> None:
    groups = [group("long", prompt_tokens=30), *(group(f"{i}", prompt_tokens=8) for i in range(3))]
    first, second = plans(groups, world_size=2)
    assert sorted([working(first), sorted(working(second))]) == [["0", "1", "2"], ["long"]]


def test_rank_without_groups_runs_text_with_nothing_to_train_on() -> None:
    first, second = plans([group("a")], world_size=2)
    assert first == (IDLE,)
    assert working(second) == ["a"]
    assert IDLE.clips == ()
    assert not IDLE.answer_mask_GSR.any()
    assert not IDLE.advantages_GS.any()
    assert not IDLE.is_policy_GS.any()


def test_every_rank_knows_the_global_counts() -> None:
    groups = [group(f"{i}") for i in range(3)]
    counts = {
        (batch.num_tokens, batch.num_sequences)
        for rank in range(2)
        for batch in [collate(groups, [[1.0] * 3] * 3, limits=limits(), rank=rank, world_size=2)]
    }
    assert counts == {(21, 9)}


def test_moving_a_micro_batch_keeps_its_contents() -> None:
    (micro_batch,) = collate([group("a")], [[1.0] * 3], limits=limits()).micro_batches
    moved = micro_batch.to(torch.device("cpu"))
    assert torch.equal(moved.answer_ids_GSR, micro_batch.answer_ids_GSR)
    assert moved.clips == micro_batch.clips


def test_groups_of_a_rank_are_those_whose_clips_its_batch_names() -> None:
    groups = [group(f"g{n}", prompt_tokens=4 + n % 3, answers=(2, 3 + n)) for n in range(5)]
    advantages = [[0.5, -0.5, 1.0]] * 4 + [[None, None, None]]
    for world_size in (1, 2, 3, 7):
        for rank in range(world_size):
            keys = {"limits": limits(12, splits=True), "world_size": world_size}
            batch = collate(groups, advantages, rank=rank, **keys)
            needed = {clip.uri for micro in batch.micro_batches for clip in micro.clips}
            own = {item.clip.uri for item in shares(groups, advantages, **keys)[rank]}
            assert needed == own
    assert shares(groups[-1:], advantages[-1:], **keys)[rank] == []


def test_a_step_is_planned_once_though_the_next_one_is_planned_meanwhile() -> None:
    this, following = ([group(f"{n}{at}") for n in range(3)] for at in ("a", "b"))
    keys = {"limits": limits(20, splits=True), "world_size": 2}
    numbers = [[0.5, -0.5, 1.0]] * 3
    before = _planned.cache_info().misses
    for groups in (this, following):
        shares(groups, numbers, **keys)
    batch = collate(this, numbers, **keys)
    shares(following, numbers, **keys)
    assert _planned.cache_info().misses == before + 2
    assert {part.work.key for bins in batch.plan for one in bins for part in one} == {
        item.prompt_id for item in this
    }


def test_tensors_hold_the_numbers_of_the_message_bit_for_bit() -> None:
    made = group("a", answers=(5,))
    ids = (0, 1, 2**31 - 1, 151_643, 7)
    logprobs = (-0.1, -0.0, -1e-30, -87.3, -1 / 3)
    sample = made.samples[0].model_validate(
        made.samples[0].model_dump() | {"token_ids": ids, "logprobs": logprobs}
    )
    sent = made.model_copy(update={"samples": (sample, *made.samples[1:])})
    read = ScoredGroup.model_validate_json(sent.model_dump_json(context=PACKED))
    (micro_batch,) = collate([read], [[1.0, 1.0]], limits=limits()).micro_batches
    assert torch.equal(micro_batch.answer_ids_GSR[0, 0], torch.tensor(ids))
    wanted = torch.tensor(logprobs)
    assert micro_batch.rollout_logprobs_GSR[0, 0].view(torch.int32).equal(wanted.view(torch.int32))
    assert micro_batch.prompt_ids_GP.equal(torch.tensor([tuple(made.prompt_token_ids)]))
    assert micro_batch.prompt_ids_GP.dtype == micro_batch.answer_ids_GSR.dtype == torch.int64
