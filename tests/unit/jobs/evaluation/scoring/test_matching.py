"""Predictions find their annotation; what does not fit is named or, if asked, counted."""

import unicodedata

import pytest

from common.answers.spans import Span
from jobs.evaluation.scoring.matching import Question, match, own_questions
from jobs.evaluation.scoring.predictions import Prediction


def question(id: str, query: str = "q", video: str = "v.mp4", span: Span = (0, 1)) -> Question:
    return Question(id=id, video=video, query=query, spans=(span,))


def test_name_is_matched_however_it_is_written() -> None:
    asked = question("line 1", query="Person opens  a door.", video="videos/AB_0.0_15.5.mp4")
    given = Prediction(key="0", video="AB_0.0_15.5", query="person opens a door")

    matched = match([given], questions=[asked])

    assert matched.pairs == ((given, asked),)


def test_id_wins_over_the_order_of_the_file() -> None:
    given = Prediction(key="2", id="2", query="q")

    matched = match([given], questions=[question("1"), question("2")], partial=True)

    assert (matched.pairs[0][1].id, matched.unanswered) == ("2", 1)


def test_one_name_with_two_spans_is_told_apart_by_the_span_then_by_order() -> None:
    questions = [question("1", span=(0, 1)), question("2", span=(5, 6)), question("3", span=(8, 9))]
    second = Prediction(key="a", video="v", query="q", truth=((5.0, 6.0),))
    others = [Prediction(key=key, video="v", query="q") for key in "bc"]

    matched = match([second, *others], questions=questions)

    assert [found.id for _, found in matched.pairs] == ["2", "1", "3"]


def test_unknown_predictions_are_named() -> None:
    given = [Prediction(key=key, video="v", query=query) for key, query in ("aq", "bx")]

    with pytest.raises(ValueError, match=r"found 1 predictions without an annotation.*'b'"):
        match(given, questions=[question("1")])


def test_unanswered_annotations_are_named() -> None:
    with pytest.raises(ValueError, match=r"found 6 annotations without.*'2'.*…; --partial"):
        match(
            [Prediction(key="1", id="1")],
            questions=[question("1"), *(question(str(n), query=str(n)) for n in range(2, 8))],
        )


def test_partial_counts_both_kinds() -> None:
    given = [Prediction(key="1", id="1"), Prediction(key="9", id="9", video="w", query="?")]

    matched = match(given, questions=[question("1"), question("2", query="other")], partial=True)

    assert (len(matched.pairs), matched.unknown, matched.unanswered) == (1, 1, 1)


def test_nothing_in_common_is_refused_even_when_partial() -> None:
    with pytest.raises(ValueError, match="are --bench and --gt those that were asked"):
        match([Prediction(key="9", id="9")], questions=[question("1")], partial=True)


def test_id_of_another_query_is_refused() -> None:
    with pytest.raises(ValueError, match="found an answer to 'cats', wanted one to 'dogs'"):
        match([Prediction(key="1", id="1", query="cats")], questions=[question("1", query="dogs")])


def test_two_predictions_for_one_annotation_are_refused() -> None:
    given = [Prediction(key=key, video="v", query="q") for key in "ab"]

    with pytest.raises(ValueError, match="two predictions for annotation '1'"):
        match(given, questions=[question("1")])


def test_annotation_id_that_stands_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="found annotation '1' twice"):
        match([], questions=[question("1"), question("1")])


def test_duration_of_the_prediction_fills_in() -> None:
    matched = match([Prediction(key="1", id="1", duration_s=30.0)], questions=[question("1")])

    assert matched.pairs[0][1].duration_s == 30.0


def test_predictions_that_repeat_their_truth_need_no_annotations() -> None:
    given = [Prediction(key="k", video="v", query="q", truth=((1.0, 2.0),), duration_s=9.0)]

    assert own_questions(given) == [
        Question(id="k", video="v", query="q", spans=((1.0, 2.0),), duration_s=9.0)
    ]
    ratings = {4: (1.0, 2.0, 3.0), 7: (4.0, 4.0, 4.0)}
    (rated,) = own_questions([Prediction(key="k", truth=((8.0, 10.0),), ratings=ratings)])
    assert (rated.clip_ids, rated.saliency) == ((4, 7), tuple(ratings.values()))
    with pytest.raises(ValueError, match=r"no true span with prediction 'x'.*--gt"):
        own_questions([Prediction(key="x")])


def test_letters_match_however_they_are_composed() -> None:
    composed = question("1", video="Kühlschrank.mp4", query="ein Kühlschrank")
    nfd = {
        key: unicodedata.normalize("NFD", text)
        for key, text in (("video", composed.video), ("query", composed.query))
    }
    assert match([Prediction(key="p", **nfd)], questions=[composed]).pairs[0][1] == composed


def test_predictions_that_find_nothing_come_with_the_nearest() -> None:
    questions = [
        question("qid 17", video="3MSZA.mp4", query="a dog runs"),
        question("2", video="3MSZB.mp4"),
    ]
    given = [
        Prediction(key="query", video="3MSZA", query="a dog runs away"),
        Prediction(key="case", video="3msza.mp4", query="a dog runs"),
        Prediction(key="qid 18", id="qid 18"),
        Prediction(key="far", video="zebra", query="?"),
    ]
    nearest = {
        "query": "query 'a dog runs' of this video",
        "case": "video '3MSZA'",
        "qid 18": "id 'qid 17'",
        "far": None,
    }
    answers = [Prediction(key="2", id="2")]
    assert match([*given, *answers], questions=questions, partial=True).nearest == nearest
    said = r"found 4 .*'case' \(nearest: video '3MSZA'\), .*'far'; --partial"
    with pytest.raises(ValueError, match=said):
        match([*given, *answers], questions=questions)
    with pytest.raises(ValueError, match=r"The file has 'case' \(nearest: video '3MSZA'\)"):
        match(given[1:2], questions=questions, partial=True)
