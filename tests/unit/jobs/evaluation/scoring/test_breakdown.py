"""Figures by span length, position and duration, by hand."""

from jobs.evaluation.scoring.breakdown import breakdowns
from jobs.evaluation.scoring.matching import Pair, Question
from jobs.evaluation.scoring.predictions import Prediction
from jobs.evaluation.scoring.protocols import judge


def pair(text: str, start_s: float, end_s: float, duration_s: float | None) -> Pair:
    question = Question(
        id="1", video="v", query="q", spans=((start_s, end_s),), duration_s=duration_s
    )
    return Prediction(key="1", text=text), question


PAIRS = [
    pair("0 to 2", 0.0, 2.0, 20.0),
    pair("0 to 1", 0.0, 4.0, 20.0),
    pair("50 to 60", 40.0, 60.0, 60.0),
    pair("5 to 6", 5.0, 6.0, None),
]


def test_each_query_is_in_one_group_and_edges_belong_to_the_upper_one() -> None:
    lengths, positions, durations = breakdowns(PAIRS, judgement=judge(PAIRS, protocol="exact"))

    found = {group.name: (group.queries, group.miou, group.recall_50) for group in lengths.groups}
    assert found == {
        "0 to 2 s": (1, 100.0, 100.0),
        "2 to 5 s": (2, 62.5, 50.0),
        "5 to 10 s": (0, None, None),
        "10 to 20 s": (0, None, None),
        ">= 20 s": (1, 50.0, 100.0),
    }
    assert [group.queries for group in positions.groups] == [2, 0, 1]
    assert [group.queries for group in durations.groups] == [2, 0, 1, 0, 0]


def test_queries_without_duration_are_counted_apart() -> None:
    lengths, positions, durations = breakdowns(PAIRS, judgement=judge(PAIRS, protocol="exact"))

    assert (lengths.unknown, positions.unknown, durations.unknown) == (0, 1, 1)


def test_failures_that_are_not_scored_are_in_no_group() -> None:
    pairs = [*PAIRS, (Prediction(key="2", failure="video"), PAIRS[0][1])]

    exact = breakdowns(pairs, judgement=judge(pairs, protocol="exact"))
    seed = breakdowns(pairs, judgement=judge(pairs, protocol="seed"))

    assert [sum(group.queries for group in found[0].groups) for found in (exact, seed)] == [4, 5]
