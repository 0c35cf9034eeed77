"""Every answer once, within the budget, the same plan whatever the order; splits only where due."""

import random
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.model.architecture import PUBLISHED
from services.learner.batching.plan import (
    Limits,
    Part,
    Plan,
    Work,
    flop_cost,
    plan,
    smallest,
    time_of,
    useful_share,
)
from tests.bench.learner import balance

COST = flop_cost(PUBLISHED[balance.MODEL], passes=4.0, trained_tower=False)


@st.composite
def steps(draw: st.DrawFn) -> tuple[list[Work], int, int]:
    """Groups, ranks, and a budget that holds the largest prompt and answer."""
    sizes = draw(
        st.lists(
            st.tuples(st.integers(1, 300), st.lists(st.integers(1, 90), min_size=1, max_size=6)),
            min_size=1,
            max_size=10,
        )
    )
    works = [Work(f"p{i}", p, p // 2, tuple(answers)) for i, (p, answers) in enumerate(sizes)]
    least = max(map(smallest, works))
    return works, draw(st.integers(1, 5)), least + draw(st.integers(0, 500))


def parts_of(made: Plan) -> list[Part]:
    return [part for bins in made for parts in bins for part in parts]


@settings(deadline=None, max_examples=60)
@given(steps())
def test_every_answer_is_forwarded_once_within_the_budget_on_ranks_in_step(
    step: tuple[list[Work], int, int],
) -> None:
    works, ranks, max_tokens = step
    made = plan(works, world_size=ranks, limits=Limits(max_tokens, COST))
    rows = Counter((part.work.key, row) for part in parts_of(made) for row in part.rows)
    assert rows == Counter((work.key, row) for work in works for row in range(len(work.answers)))
    assert all(len(bins) == ranks and any(bins) for bins in made)
    assert all(sum(part.tokens for part in one) <= max_tokens for bins in made for one in bins)
    assert 0 < useful_share(made, works, cost=COST) <= 1 + 1e-9


@settings(deadline=None, max_examples=40)
@given(steps(), st.randoms(use_true_random=False))
def test_the_order_of_groups_says_nothing(
    step: tuple[list[Work], int, int], random_: random.Random
) -> None:
    works, ranks, max_tokens = step
    limits = Limits(max_tokens, COST)
    wanted = plan(works, world_size=ranks, limits=limits)
    shuffled = list(works)
    random_.shuffle(shuffled)
    assert plan(shuffled, world_size=ranks, limits=limits) == wanted


def planned(works: Sequence[Work], ranks: int, max_tokens: int, *, splits: bool = True) -> Plan:
    return plan(works, world_size=ranks, limits=Limits(max_tokens, COST, splits=splits))


def test_a_group_that_is_too_large_is_split_along_its_answers_in_few_parts() -> None:
    work = Work("long", 1000, 900, (200, 30, 190, 40))
    (whole,) = parts_of(planned([work], 1, 1000 + 4 * 200))
    assert whole.rows == (0, 1, 2, 3)
    made = parts_of(planned([work], 1, 1000 + 2 * 200, splits=False))
    assert sorted(part.rows for part in made) == [(0, 2), (1, 3)]


def test_without_room_for_one_answer_the_number_that_fits_is_named() -> None:
    work = Work("long", 1000, 900, (200, 30))
    assert len(parts_of(planned([work], 1, 1199))) == 2
    with pytest.raises(ValueError, match=r"prompt long: .*max_tokens_per_rank to 1,199"):
        planned([work], 1, 1198)


def test_a_prompt_is_paid_twice_only_where_that_is_faster() -> None:
    answers_dominate = [Work("a", 100, 90, (2000,) * 8)]
    assert len(parts_of(planned(answers_dominate, 2, 10**6))) == 2
    prompt_dominates = [Work("a", 14_000, 13_000, (20,) * 8)]
    assert len(parts_of(planned(prompt_dominates, 2, 10**6))) == 1
    split, whole = (planned(answers_dominate, 2, 10**6, splits=s) for s in (True, False))
    assert time_of(split) < 0.6 * time_of(whole)


def test_cost_is_quadratic_in_the_prompt() -> None:
    one, two = COST(20_000, 0, ()), COST(40_000, 0, ())
    assert 2.2 * one < two < 4 * one


def test_drawn_prompts_keep_ranks_busy() -> None:
    found = balance.figures(draws=15)
    assert found["16/8"] >= 0.85
    assert found["32/16"] >= 0.80
    assert found["padding"] < 0.1
    thinking = balance.figures(draws=5, longest=2048)
    assert thinking["16/8"] >= 0.85
    assert thinking["padding"] < 0.1
