"""Choosing between two answers, with and without the truth."""

import math
from dataclasses import replace

import pytest

from jobs.asking.answers import Answer
from jobs.evaluation.scoring.modes import (
    answer_logprob,
    label_of,
    oracle,
    select,
    self_agreement,
)
from jobs.evaluation.scoring.predictions import FailureKind, PredictionRecord
from jobs.evaluation.summary import compare_choices, mix


def record(
    text: str | None,
    *,
    logprob: float | None = None,
    samples: tuple[str, ...] = (),
    failure: FailureKind | None = None,
    id: str = "1",
) -> PredictionRecord:
    return PredictionRecord(
        id=id,
        video="a.mp4",
        query="q",
        gt=((10.0, 20.0),),
        mode="answer",
        text=text,
        answer_logprob=logprob,
        samples=samples,
        failure=failure,
        fingerprint="f",
    )


def generated(*pieces: tuple[str, float]) -> Answer:
    """An answer of these tokens and log-probabilities."""
    ends = [sum(len(text) for text, _ in pieces[: k + 1]) for k in range(len(pieces))]
    return Answer(
        text="".join(text for text, _ in pieces),
        ending="stop",
        logprobs=tuple(logprob for _, logprob in pieces),
        token_ends=tuple(ends),
    )


def test_only_tokens_inside_the_answer_count() -> None:
    answer = generated(
        ("<think> 1 to 2", -9.0),
        ("</think>", -9.0),
        ("<answer>", -9.0),
        (" 3", -0.5),
        (" to 4", -1.5),
        (" ", -1.0),
        ("</answer>", -9.0),
        ("", -9.0),
    )
    assert answer_logprob(answer) == -1.0


def test_a_token_that_reaches_into_the_answer_counts() -> None:
    answer = generated(("<answer> 3", -0.5), (" to ", -1.0), ("4 </answer>", -1.5))
    assert answer_logprob(answer) == -1.0


def test_of_two_blocks_the_one_that_is_read_counts() -> None:
    answer = generated(
        ("<think><answer>", -9.0),
        ("1 to 2", -9.0),
        ("</answer></think>", -9.0),
        ("<ANSWER>", -9.0),
        ("5 to 6", -2.0),
        ("</ANSWER>", -9.0),
    )
    assert answer_logprob(answer) == -2.0


def test_without_a_closed_answer_there_is_no_log_probability() -> None:
    assert answer_logprob(generated(("3 to 4", -1.0))) is None
    assert answer_logprob(generated(("<answer>", -1.0), ("3 to", -1.0))) is None


def test_without_token_ends_there_is_no_log_probability() -> None:
    said = generated(("<answer>", -1.0), ("3 to 4", -1.0), ("</answer>", -1.0))
    assert answer_logprob(replace(said, token_ends=())) is None


def test_without_probabilities_there_is_no_log_probability() -> None:
    said = generated(("<answer>", -1.0), ("3 to 4", -1.0), ("</answer>", -1.0))
    assert answer_logprob(said) == -1.0
    assert answer_logprob(replace(said, logprobs=None)) is None


def test_self_agreement_is_the_mean_iou_over_pairs() -> None:
    same = "<answer> 0 to 10 </answer>"
    half = "<answer> 0 to 5 </answer>"
    assert self_agreement([same, same]) == 1.0
    assert math.isclose(self_agreement([same, same, half]), (1 + 0.5 + 0.5) / 3)
    assert self_agreement([same, "no idea"]) == 0.0
    assert self_agreement(["no idea", "no idea"]) == 0.0
    with pytest.raises(ValueError, match="--samples"):
        self_agreement([same])


def test_the_likelier_answer_is_selected_and_a_tie_saves_the_thought() -> None:
    answer = record("<answer> 10 to 12 </answer>", logprob=-0.5)
    surer = record("<answer> 10 to 20 </answer>", logprob=-0.1)
    assert select(answer, think=surer, by="logprob").text == surer.text
    assert select(surer, think=answer, by="logprob").text == surer.text
    equal = record("<answer> 1 to 2 </answer>", logprob=-0.5)
    assert select(answer, think=equal, by="logprob").text == answer.text
    assert select(answer, think=surer, by="logprob").mode == "mixed_selected"


def test_the_more_consistent_mode_is_selected() -> None:
    steady = record("<answer> 1 to 2 </answer>", samples=("<answer> 1 to 2 </answer>",) * 2)
    torn = record(
        "<answer> 10 to 20 </answer>",
        samples=("<answer> 1 to 2 </answer>", "<answer> 3 to 4 </answer>"),
    )
    assert select(torn, think=steady, by="agreement").text == steady.text


@pytest.mark.parametrize("by", ["logprob", "agreement"])
def test_a_readable_answer_wins_over_an_unreadable_one_and_over_a_failure(by: str) -> None:
    samples = ("<answer> 1 to 2 </answer>",) * 2
    readable = record("<answer> 1 to 2 </answer>", logprob=-5.0, samples=samples)
    unreadable = record("no idea", logprob=-0.1, samples=samples)
    failed = record(None, failure="engine")
    for worse in (unreadable, failed):
        assert select(worse, think=readable, by=by).text == readable.text  # type: ignore[arg-type]
    assert select(failed, think=unreadable, by=by).text == "no idea"  # type: ignore[arg-type]
    assert select(failed, think=failed, by=by).failure == "engine"  # type: ignore[arg-type]


def test_selection_never_looks_at_the_truth() -> None:
    wrong = record("<answer> 90 to 95 </answer>", logprob=-0.1)
    right = record("<answer> 10 to 20 </answer>", logprob=-0.2)
    for truth in (((10.0, 20.0),), ((90.0, 95.0),)):
        pair = [one.model_copy(update={"gt": truth}) for one in (right, wrong)]
        assert select(pair[0], think=pair[1], by="logprob").text == wrong.text
    assert oracle(right, think=wrong).text == right.text


def test_the_oracle_says_what_it_is() -> None:
    assert label_of("mixed_oracle") == "mixed oracle (uses the truth)"
    assert label_of("mixed_selected") == "mixed_selected"


def test_choices_are_compared_on_the_same_queries() -> None:
    good, bad = "<answer> 10 to 20 </answer>", "<answer> 50 to 60 </answer>"
    pairs = [
        (
            record(good, logprob=-0.1, samples=(good, bad)),
            record(bad, logprob=-0.2, samples=(bad,) * 2),
        ),
        (
            record(bad, logprob=-0.2, samples=(bad, good)),
            record(good, logprob=-0.1, samples=(good,) * 2),
        ),
    ]
    failed = (record(None, failure="engine"), record(good))
    compared = compare_choices([*pairs, failed])
    assert compared is not None
    assert compared.queries == 2
    assert compared.miou == {
        "answer": 50.0,
        "think": 50.0,
        "logprob": 100.0,
        "agreement": 50.0,
        "oracle (uses the truth)": 100.0,
    }
    assert compared.think_chosen == {
        "answer": 0.0,
        "think": 1.0,
        "logprob": 0.5,
        "agreement": 1.0,
        "oracle (uses the truth)": 0.5,
    }
    unsampled = [tuple(one.model_copy(update={"samples": ()}) for one in pair) for pair in pairs]
    without = compare_choices(unsampled)  # type: ignore[arg-type]
    assert without is not None
    assert "agreement" not in without.miou
    assert compare_choices([failed]) is None


def test_mixing_pairs_by_query() -> None:
    answers = [record("<answer> 1 to 2 </answer>", id="1", logprob=-1.0), record("x", id="2")]
    thoughts = [record("<answer> 3 to 4 </answer>", id="1", logprob=-0.5), record("y", id="3")]
    assert [(one.id, one.text) for one in mix(answers, thoughts=thoughts, by="logprob")] == [
        ("1", "<answer> 3 to 4 </answer>")
    ]
