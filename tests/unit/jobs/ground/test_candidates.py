"""`jobs.ground.candidates`: confidences by hand, nothing dropped, nothing clipped."""

import math

import pytest

from common.errors import EngineError
from common.messages import (
    FinishReason,
    GeneratedAnswer,
    GenerateResponse,
    Sample,
    VersionSpan,
)
from jobs.asking.answers import Reply, of_replica
from jobs.ground.candidates import Grounding, ground
from tests.fixtures.wire import CLIP  # ten seconds

UNREADABLE = "I cannot tell."


def answered(
    text: str,
    *,
    logprobs: tuple[float, ...] | None = None,
    finish_reason: FinishReason = "stop",
    version: int = 0,
) -> GeneratedAnswer:
    """One token a character."""
    sample = Sample(
        token_ids=(5,) * len(text),
        logprobs=logprobs or (-0.5,) * len(text),
        version_spans=(VersionSpan(version=version, start=0, end=len(text)),),
        finish_reason=finish_reason,
        provenance="policy",
    )
    return GeneratedAnswer(sample=sample, text=text, token_ends=tuple(range(1, len(text) + 1)))


def said(start_s: float, end_s: float) -> GeneratedAnswer:
    return answered(f"<answer> {start_s:.2f} to {end_s:.2f} </answer>")


def reply(*answers: GeneratedAnswer) -> Reply:
    response = GenerateResponse(
        prompt_token_ids=(1,), num_visual_tokens=0, grid_thw=(1, 1, 1), answers=answers
    )
    return of_replica(response)


def grounded(greedy: GeneratedAnswer, *samples: GeneratedAnswer) -> Grounding:
    replies = [reply(greedy), reply(*samples)] if samples else [reply(greedy)]
    return ground(CLIP, query="?", mode="answer", replies=replies)


def test_one_answer_has_the_probability_of_the_tokens_of_its_block() -> None:
    text = "<think> 1 to 2? </think><answer>3 to 4</answer>"
    begin = text.index("3 to 4")
    logprobs = [-9.0] * len(text)
    logprobs[begin : begin + 6] = [-0.1, -0.2, -0.3, -0.1, -0.2, -0.3]
    (candidate,) = grounded(answered(text, logprobs=tuple(logprobs))).candidates
    assert candidate.spans == ((3.0, 4.0),)
    assert candidate.confidence == pytest.approx(math.exp(-0.2))
    assert (candidate.is_greedy, candidate.num_samples, candidate.agreement) == (True, 0, None)


def test_tokens_spell_the_text_and_are_left_out_where_they_are_not_known() -> None:
    made = answered("3 to 4", logprobs=(-1, -1, -1, -2, -2, -2))
    (answer,) = grounded(made).answers
    assert "".join(token.text for token in answer.tokens) == "3 to 4"
    assert [token.logprob for token in answer.tokens] == [-1, -1, -1, -2, -2, -2]
    (answer,) = grounded(made.model_copy(update={"token_ends": ()})).answers
    assert answer.tokens == ()
    assert answer.token_probability is not None


def test_without_a_block_all_tokens_count() -> None:
    (candidate,) = grounded(answered("3 to 4", logprobs=(-1, -1, -1, -2, -2, -2))).candidates
    assert candidate.confidence == pytest.approx(math.exp(-1.5))


def test_confidence_is_the_share_of_samples_that_agree() -> None:
    found = grounded(
        said(2, 6),
        *(said(7, 9), said(2, 6), said(2, 5), said(2, 6)),
    )
    best, other = found.candidates
    assert (best.spans, best.num_samples, best.confidence) == (((2.0, 6.0),), 3, 0.75)
    # The other samples are (7, 9), (2, 5), (2, 6): IoU 0, 3/4, 1.
    assert best.agreement == pytest.approx((0 + 0.75 + 1) / 3)
    assert best.is_greedy
    assert (other.spans, other.confidence, other.agreement) == (((7.0, 9.0),), 0.25, 0.0)
    assert not other.is_greedy
    assert "share of all samples" in found.confidence_is


def test_the_answer_that_agrees_best_stands_for_its_candidate() -> None:
    found = grounded(said(0, 1), said(1, 5), said(2, 6), said(3, 7))
    assert found.candidates[0].spans == ((2.0, 6.0),)


def test_unreadable_samples_lower_every_confidence_and_are_kept() -> None:
    found = grounded(said(2, 6), said(2, 6), answered(UNREADABLE), said(2, 6), answered(UNREADABLE))
    (candidate,) = found.candidates
    assert candidate.confidence == 0.5
    assert candidate.agreement == pytest.approx(1 / 3)
    assert found.num_unreadable == 2
    assert [answer.text for answer in found.answers].count(UNREADABLE) == 2


def test_a_greedy_answer_that_no_sample_resembles_comes_last() -> None:
    found = grounded(said(8, 9), said(2, 6), said(2, 5), said(0, 1))
    assert [c.spans for c in found.candidates] == [
        ((2.0, 6.0),),
        ((0.0, 1.0),),
        ((8.0, 9.0),),
    ]
    last = found.candidates[-1]
    assert (last.is_greedy, last.confidence, last.num_samples, last.agreement) == (True, 0.0, 0, 0)


def test_of_equally_confident_candidates_the_greedy_one_comes_first_and_the_odd_one_last() -> None:
    found = grounded(said(8, 9), said(4, 4), said(12, 13), said(2, 3), said(8, 9))
    assert {candidate.confidence for candidate in found.candidates} == {0.25}
    assert [c.spans[0][0] for c in found.candidates] == [8.0, 2.0, 4.0, 12.0]


def test_an_unreadable_greedy_answer_leaves_the_samples_candidates() -> None:
    found = grounded(answered(UNREADABLE), said(2, 6), said(2, 6))
    (candidate,) = found.candidates
    assert (candidate.confidence, candidate.is_greedy) == (1.0, False)
    assert found.num_unreadable == 1


def test_nothing_readable_is_no_candidate() -> None:
    found = grounded(answered(UNREADABLE), answered(UNREADABLE), answered(UNREADABLE))
    assert (found.candidates, found.num_unreadable, len(found.answers)) == ((), 3, 3)


def test_answers_of_several_spans_are_compared_as_sets() -> None:
    both = answered("<answer> 1 to 2, 5 to 7 </answer>")
    found = grounded(both, both, said(5, 7), answered("<answer> 1 to 2, 5 to 7 </answer>"))
    assert [(c.spans, c.num_samples) for c in found.candidates] == [
        (((1.0, 2.0), (5.0, 7.0)), 3)  # 2 s of 3 s are common: IoU 2/3
    ]


def test_equal_empty_spans_agree() -> None:
    (candidate,) = grounded(said(3, 3), said(3, 3), said(3, 3)).candidates
    assert (candidate.confidence, candidate.agreement) == (1.0, 1.0)
    assert candidate.notes == ("empty span",)


@pytest.mark.parametrize(
    ("text", "span", "note"),
    [
        ("<answer> 12.0 to 15.0 </answer>", (12.0, 15.0), "outside the video of 10.00 s"),
        ("<answer> 8.0 to 15.5 </answer>", (8.0, 15.5), "ends 5.50 s after the video"),
        ("<answer> -2.0 to 3.0 </answer>", (-2.0, 3.0), "starts 2.00 s before the video"),
        ("<answer> 6.0 to 3.0 </answer>", (3.0, 6.0), "written end first"),
    ],
)
def test_what_is_odd_about_an_answer_is_noted_and_its_times_are_kept(
    text: str, span: tuple[float, float], note: str
) -> None:
    (candidate,) = grounded(answered(text)).candidates
    assert (candidate.spans, candidate.notes) == ((span,), (note,))


def test_an_end_that_differs_from_the_videos_by_rounding_is_not_odd() -> None:
    (candidate,) = grounded(answered("<answer> 8.0 to 10.004 </answer>")).candidates
    assert candidate.notes == ()


def test_an_answer_that_was_cut_off_says_so() -> None:
    found = grounded(answered("<think> hmm", finish_reason="length"))
    assert found.answers[0].notes == ("cut off after 11 tokens (--max-tokens)",)


def test_answers_of_two_weight_versions_are_refused() -> None:
    samples = [answered("1 to 2", version=3), answered("1 to 2", version=4)]
    with pytest.raises(EngineError, match=r"weight versions \[0, 3, 4\]"):
        grounded(answered("1 to 2"), *samples)
