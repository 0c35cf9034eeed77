"""Where tokens stand in a packed sequence: each once, found again, little padding."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from services.learner.batching.layout import MAX_PADDING, Packing, blocks, packed_lengths

WIDTHS = st.lists(st.integers(0, 300), min_size=1, max_size=16)
GROUPS = st.lists(
    st.tuples(st.integers(1, 4), st.lists(st.integers(1, 6), min_size=3, max_size=3)),
    min_size=1,
    max_size=5,
)


@given(WIDTHS)
def test_blocks_hold_each_answer_once_and_little_padding(widths: list[int]) -> None:
    made = blocks(widths)
    rows = [row for block in made for row in block]
    assert sorted(rows) == [row for row, width in enumerate(widths) if width > 0]
    for block in made:
        assert widths[block[0]] == max(widths[row] for row in block)
        slots = len(block) * widths[block[0]]
        assert sum(widths[row] for row in block) >= (1 - MAX_PADDING) * slots


def test_answers_of_one_token_need_no_slot() -> None:
    assert packed_lengths([1, 1]) == [0, 0]
    assert packed_lengths([5, 1, 5]) == [4, 4, 0]


@settings(deadline=None)
@given(GROUPS)
def test_each_token_stands_once_and_its_predecessor_predicts_it(
    groups: list[tuple[int, list[int]]],
) -> None:
    prompts, answers = [prompt for prompt, _ in groups], [row for _, row in groups]
    packing = Packing.of(prompts, answers)
    shape = (len(groups), 3, max(map(max, answers)))
    prompt_ids = torch.arange(len(groups) * max(prompts)).view(len(groups), -1)
    answer_ids = 1000 + torch.arange(shape[0] * shape[1] * shape[2]).view(shape)
    sources = packing.sources(max(prompts), shape[2])
    ids = torch.cat([prompt_ids.flatten(), answer_ids.flatten()])[sources]
    assert len(ids) == packing.num_tokens == len(packing.is_prompt_L)
    assert len(set(ids.tolist())) == len(ids)
    assert ((ids < 1000) == packing.is_prompt_L).all()
    before = ids[packing.predictors(shape[2])]
    for g, (prompt, row) in enumerate(groups):
        for s, length in enumerate(row):
            wanted = [prompt_ids[g, prompt - 1], *answer_ids[g, s, : length - 1]]
            assert before[g, s, :length].tolist() == [int(one) for one in wanted]


@given(GROUPS)
def test_segments_are_split_and_joined_along_any_axis(groups: list[tuple[int, list[int]]]) -> None:
    packing = Packing.of([prompt for prompt, _ in groups], [row for _, row in groups])
    packed = torch.arange(5 * packing.num_tokens * 2).view(1, 5, -1, 2)
    views = packing.split(packed, dim=2)
    joined = []
    for segment, view in zip(packing.segments, views, strict=True):
        prompt, answers = segment.split(view, dim=2)
        assert prompt.shape == (segment.num_groups, 5, segment.prompt_tokens, 2)
        for block, one in zip(segment.blocks, answers, strict=True):
            assert one.shape == (segment.num_groups * len(block.rows), 5, block.tokens, 2)
        joined.append(segment.join(prompt, answers, dim=2))
    assert torch.equal(torch.cat(joined, dim=2), packed)


def test_equal_groups_stand_in_one_segment_and_others_alone() -> None:
    packing = Packing.of([7, 7, 7, 8], [(20, 5), (19, 5), (4, 5), (4, 5)])
    assert [(s.first, s.num_groups, s.prompt_tokens) for s in packing.segments] == [
        (0, 2, 7),
        (2, 1, 7),
        (3, 1, 8),
    ]


def test_fork_copies_each_prompt_to_its_own_answers() -> None:
    (segment,) = Packing.of([1, 1], [(2, 2, 2), (2, 2, 2)]).segments
    forked = segment.fork(torch.tensor([[1], [2]]), segment.blocks[0])
    assert forked.flatten().tolist() == [1, 1, 1, 2, 2, 2]


def test_rows_that_only_pad_take_no_slot() -> None:
    packing = Packing.of([3, 3], [(4, 4), (4, 0)])
    assert packing.num_tokens == 2 * 3 + 3 * 3


@pytest.mark.parametrize("length", [1, 2])
def test_the_shortest_groups_can_be_packed(length: int) -> None:
    packing = Packing.of([1], [(length,)])
    assert packing.num_tokens == length
    assert packing.predictors(length).flatten().tolist() == list(range(length))
